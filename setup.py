"""Packaging of `jaxagent` and `kernels_pallas`."""

import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent

CORE = [
  'jax>=0.10',
  'flax>=0.12',
  'optax>=0.2.8',
  'orbax-checkpoint>=0.12',
  'chex>=0.1.90',
  'ml_collections>=1.1',
  'absl-py>=2.3',
  'gymnasium>=1.2',
  'tensorflow-datasets>=4.9.9',
  'array-record>=0.8; platform_system == "Linux"',
  'jaxtyping>=0.3.3',
  'tokenizers>=0.22',
  'safetensors>=0.6',
  'jinja2>=3.1',
  'numpy>=2.0',
  'tqdm>=4.67',
  'rich>=14.0',
  'tensorboardX>=2.6',
  'matplotlib>=3.10',
]

EXTRAS = {
  'alfworld': ['alfworld>=0.4.2', 'textworld>=1.7.0'],
  'gguf': ['gguf>=0.17'],
  'search': ['bm25s>=0.2'],
  'http': ['openai>=1.60'],
  'arc': ['arc-agi; python_version >= "3.12"'],
  'mcp': ['mcp>=1.9'],
  'reasoning': ['reasoning-gym>=0.1.25', 'math-verify>=0.9,<0.10'],
  'tpu': [
    # The pairs that the kernels' compile gate knows (kernels_pallas.testing).
    'jax==0.10.2; python_version < "3.12"',
    'jax==0.12.0.1; python_version >= "3.12"',
    'libtpu==0.0.42.1; python_version < "3.12" and platform_machine == "x86_64"'
    ' and sys_platform == "linux"',
    'libtpu==0.0.50.1; python_version >= "3.12" and platform_machine == "x86_64"'
    ' and sys_platform == "linux"',
  ],
  'dev': [
    'beartype>=0.22',
    'gguf>=0.17',
    'ipykernel>=6.29',
    # Not reasoning-gym: its pycosat is compiled on installation.
    'math-verify>=0.9,<0.10',
    'nbclient>=0.10',
    'nbformat>=5.10',
    'pytest>=8.3',
    'pytest-timeout>=2.3',
    'pytest-xdist>=3.6',
    'ruff>=0.12',
  ],
}

setuptools.setup(
  name='jaxagent',
  version='0.1.0',
  description=(
    'Reinforcement learning of language-model agents in JAX and Flax, as small'
    ' pure parts that compose.'
  ),
  long_description=(ROOT / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(
    include=[
      'jaxagent',
      'jaxagent.*',
      'kernels_pallas',
      'kernels_pallas.*',
    ]
  ),
  package_data={'jaxagent': ['assets/**/*', 'report/*.html']},
  install_requires=CORE,
  extras_require=EXTRAS,
)
