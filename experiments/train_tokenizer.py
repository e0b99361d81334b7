"""Trains the embedded household tokenizer.

  python -m experiments.train_tokenizer --output=FOLDER

The corpus is what generated games print. The result is committed under
`jaxagent/assets/household_tokenizer`; training again replaces every id, so that
checkpoints of earlier vocabularies become useless.
"""

import argparse
from collections.abc import Iterable, Sequence
import pathlib

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxagent import tokens

SPECIAL = ('<|pad|>', '<|end|>', '<|system|>', '<|user|>', '<|assistant|>')
# A word, a digit or a run of signs, each with the blank in front of it.
SPLIT = r'\n| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|[^\S\n]+'
TEMPLATE = """\
{%- for message in messages -%}
  {%- if message.role == 'assistant' -%}
    {{- '<|assistant|>' + message.content + '<|end|>' -}}
  {%- elif message.role in ('system', 'user') -%}
    {{- '<|' + message.role + '|>' + message.content -}}
  {%- else -%}
    {{- raise_exception('unknown role ' + message.role) -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|assistant|>' -}}
{%- endif -%}
"""
# What stands in ALFRED's rooms, spelled as ALFWorld prints it.
NOUNS = """
alarmclock aluminumfoil apple applesliced armchair baseballbat basketball
bathtub bathtubbasin bed blinds book boots bottle bowl box bread breadsliced
butterknife cabinet candle cart cd cellphone chair cloth coffeemachine
coffeetable countertop creditcard cup curtains desk desklamp desktop
diningtable dishsponge dresser drawer dumbbell egg faucet floorlamp footstool
fork fridge garbagebag garbagecan glassbottle handtowel handtowelholder
houseplant kettle keychain knife ladle laptop laundryhamper lettuce
lettucesliced lightswitch microwave mirror mug newspaper ottoman painting pan
papertowelroll pen pencil peppershaker pillow plate plunger poster pot potato
potatosliced remotecontrol roomdecor safe saltshaker scrubbrush shelf
shelvingunit showercurtain showerdoor showerhead sidetable sink sinkbasin
soapbar soapbottle sofa spatula spoon spraybottle statue stool stoveburner
stoveknob tabletopdecor teddybear television tennisracket tissuebox toaster
toilet toiletpaper toiletpaperhanger tomato tomatosliced towel towelholder
tvstand vase vacuumcleaner wateringcan watch window winebottle
"""
# What plans, hints and notes are written with.
WORDS = """
about action after again already always answer any are at away back bathroom be
because bedroom been before but by can carry check clean cold cool do each
empty examine fail find first found go goal hall hand have heat here history
home hot how if inside into it its kitchen know left likely list livingroom look
map more must near need never next no not object often one only open or order
other place plan put reach reason room same search second see seen skill so
step success summary task that them then there these they thing think this
three time to try turn twice two under until use visit wash what when where
which will with yes your
"""


def train(corpus: Iterable[str], *, vocab_size: int) -> tokens.Tokenizer:
  """Byte-level BPE of the corpus with the household template."""
  backend = tokenizers.Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(tokenizers.Regex(SPLIT), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    special_tokens=[
      tokenizers.AddedToken(token, special=True, normalized=False)
      for token in SPECIAL
    ],
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  backend.train_from_iterator(corpus, trainer)
  return tokens.Tokenizer(
    backend,
    template=TEMPLATE,
    pad_id=backend.token_to_id('<|pad|>'),
    special_tokens={'eos_token': '<|end|>', 'pad_token': '<|pad|>'},
    name='household',
  )


def vocabulary() -> list[str]:
  """Every word so often, inside a sentence, that it becomes one token."""
  return [f'a {word}.' for word in (NOUNS + WORDS).split()] * 8


def phrases() -> list[str]:
  """What the simulator prints, once for every pair of neighbouring nouns."""
  lines = []
  names = NOUNS.split()
  for a, b in zip(names, names[1:] + names[:1], strict=True):
    lines += [
      f'go to {a} 1',
      f'take {b} 1 from {a} 1',
      f'move {b} 2 to {a} 3',
      f'open {a} 4',
      f'close {a} 5',
      f'use {a} 6',
      f'clean {b} 7 with sinkbasin 1',
      f'heat {b} 8 with microwave 1',
      f'cool {b} 9 with fridge 1',
      f'You arrive at {a} 1. On the {a} 1, you see a {b} 2, and a {b} 1.',
      f'You pick up the {b} 1 from the {a} 1.',
      f'You move the {b} 1 to the {a} 1.',
      f'You open the {a} 1. The {a} 1 is open. In it, you see nothing.',
      f'The {a} 1 is closed. You close the {a} 1.',
      f'You clean the {b} 1 using the sinkbasin 1. You turn on the {a} 1.',
      f'Your task is to: put a clean {b} in {a}.',
      'Nothing happens.',
      'inventory',
      'look',
      f'examine {b} 1',
      f'put a hot {b} in {a}. put a cool {b} in {a}. put two {b} in {a}.',
      f'examine the {b} with the desklamp. look at {b} under the desklamp.',
      f'You are in the middle of a room. Looking quickly around you, you see a'
      f' {a} 2, a {a} 1, and a {b} 1. You are not carrying anything.',
    ]
  return lines


def main(argv: Sequence[str] | None = None) -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--output', type=pathlib.Path, required=True)
  parser.add_argument('--vocab_size', type=int, default=1024)
  arguments = parser.parse_args(argv)
  tokenizer = train(phrases() + vocabulary(), vocab_size=arguments.vocab_size)
  tokenizer.save(arguments.output)
  print(f'{tokenizer.vocab_size} ids in {arguments.output}')


if __name__ == '__main__':
  main()
