"""Trains the embedded household tokenizer.

  python -m experiments.train_tokenizer --output=FOLDER

The corpus is what generated games, prompts and skills print, and the nouns of
the original games. The result is committed under
`jaxagent/assets/household_tokenizer`. Training again replaces ids: checkpoints
that were made with the old ones become useless.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
import pathlib

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxagent import tokens
from jaxagent.agents import prompts, skill_library
from jaxagent.envs.alfworld import game as game_lib
from jaxagent.envs.alfworld import generate
from jaxagent.envs.alfworld import world as world_lib

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
# What the original games print of ALFRED's rooms.
NOUNS = """
alarmclock apple armchair baseballbat basketball bathtubbasin bed book boots
bowl box bread butterknife cabinet candle cart cd cellphone cloth coffeemachine
coffeetable countertop creditcard cup desk desklamp diningtable dishsponge
dresser drawer egg floorlamp footstool fork fridge garbagecan glassbottle
handtowel handtowelholder houseplant kettle keychain knife ladle laptop
laundryhamper lettuce microwave mirror mug newspaper ottoman pan papertowelroll
pen pencil peppershaker pillow plate plunger pot potato remotecontrol safe
saltshaker scrubbrush shelf sidetable sink sinkbasin soapbar soapbottle sofa
spatula spoon spraybottle statue stoveburner teddybear television tennisracket
tissuebox toaster toilet toiletpaper toiletpaperhanger tomato towel towelholder
tvstand vase wateringcan watch window winebottle
"""
# What plans, hints and notes are written with.
WORDS = """
about action after again already also always answer any at away back bathroom
be because bedroom before bench best but by can carry chair check clean cold
cool do each empty end examine find first found full go goal have here history
hold hot how if inside into it kitchen know left likely list livingroom look
map more must near need never next no not note object often once only or other
place plan put question reach reason remember result right room same search
second see seen skill slice some something start step stool study success
summary task that them then there they thing think this three time try turn
twice two under until use visit wash what when where which will with wrong yes
yet your
"""


def train(texts: Iterable[str], *, vocab_size: int) -> tokens.Tokenizer:
  """Byte-level BPE of the texts with the household template."""
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
  backend.train_from_iterator(texts, trainer)
  return tokens.Tokenizer(
    backend,
    template=TEMPLATE,
    pad_id=backend.token_to_id('<|pad|>'),
    special_tokens={'eos_token': '<|end|>', 'pad_token': '<|pad|>'},
    name='household',
  )


def corpus(num_games: int) -> Iterator[str]:
  """What games, prompts and skills print, then the words on their own."""
  skills = skill_library.default()
  rng = np.random.default_rng(0)
  for homes in ('true', 'random'):
    for game in generate.Games(size=num_games, homes=homes):
      yield from playthrough(game, rng)
      bank = skill_library.with_homes(skills, game.homes)
      yield skill_library.block(bank.skills)
  yield from [skill_library.block(skills.skills)] * 10
  for words, times in ((NOUNS, 50), (WORDS, 25)):
    for word in words.split():
      yield from [f'a {word}.'] * times


def playthrough(game: game_lib.Game, rng: np.random.Generator) -> Iterator[str]:
  """The texts of a game that is won with a detour before every command."""
  world = world_lib.World(game)
  observation = world.reset()
  yield observation
  yield prompts.opening(game.task, prompts.room(observation))[-1]['content']
  for planned in game.walkthrough:
    detours = [c for c in world.admissible if c != 'help']  # a page of text
    for command in (str(rng.choice(detours)), planned):
      yield command
      yield world.step(command)


def main(argv: Sequence[str] | None = None) -> None:
  """Trains and writes; the command line of this file."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--output', type=pathlib.Path, required=True)
  parser.add_argument('--vocab_size', type=int, default=1024)
  parser.add_argument('--num_games', type=int, default=500)
  arguments = parser.parse_args(argv)
  tokenizer = train(
    corpus(arguments.num_games), vocab_size=arguments.vocab_size
  )
  tokenizer.save(arguments.output)
  print(f'{tokenizer.vocab_size} ids in {arguments.output}')


if __name__ == '__main__':
  main()
