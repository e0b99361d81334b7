"""`python -m jaxagent.report WORKDIR ...`: report on runs."""

import sys

from jaxagent import report

if __name__ == '__main__':
  if not sys.argv[1:]:
    sys.exit('Usage: python -m jaxagent.report WORKDIR ...')
  for workdir in sys.argv[1:]:
    for path in report.write(workdir).values():
      print(path)
