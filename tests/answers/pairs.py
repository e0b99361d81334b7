r"""Wanted answers, replies, and whether a person would call them right.

One line a pair: `gold | reply | verdict`, `+` for right and `-` for wrong.
"""

_TEXT = r"""
# numbers
42 | 42 | +
42 | The answer is 42. | +
42 | 6*7 = 42 | +
42 | 41 | -
42 | The answer is 42.5 | -
-7 | -7 | +
-7 | −7 | +
-7 | 7 | -
1234 | 1,234 | +
1234567 | 1,234,567 | +
1234567 | \boxed{1{,}234{,}567} | +
12345 | \boxed{12\,345} | +
1000000 | 1 000 000 | +
1234 | 1.234 | -
0.5 | .5 | +
0.5 | 0.50 | +
3 | 3.0 | +
3.14 | 3.1416 | -
42 | ４２ | +
42 | ٤٢ | +
42 | **42** | +
42 | \boxed{042} | +
7 | x = 7 | +
x=7 | 7 | +
x=7 | y=7 | -
y = 7 | y=7 | +
7 | 3 + 4 = 7 | +
3600000 | 3.6 million | +
24 | 2 dozen | +
# scientific notation
1500 | 1.5e3 | +
1500 | 1.5 \times 10^3 | +
1500 | 1.5×10³ | +
0.00012 | 1.2e-4 | +
0.00012 | 1.2 \cdot 10^{-4} | +
6.02e23 | 6.02 \times 10^{23} | +
6.02e23 | 6.02 \times 10^{22} | -
# fractions
1/2 | 0.5 | +
\frac{1}{2} | 1/2 | +
\frac12 | \frac{2}{4} | +
\frac{1}{2} | \dfrac{1}{2} | +
\frac{1}{2} | ½ | +
3.5 | 3 1/2 | +
3.5 | 3\frac{1}{2} | +
7/2 | 3½ | +
1/3 | 0.3333 | -
1/3 | 2/6 | +
1/3 | 1/4 | -
-\frac{3}{4} | \frac{-3}{4} | +
-\frac{3}{4} | -0.75 | +
22/7 | \pi | -
# percentages
50% | 0.5 | +
50\% | 50% | +
50\% | 50 | +
0.5 | 50% | +
50 | 50\% | +
50 | 5% | -
12.5\% | 1/8 | +
5% | 0.5 | -
30\% | 30 percent | +
# powers, roots, constants
8 | 2^3 | +
2^{10} | 1024 | +
2^{10} | 2**10 | +
\sqrt{2} | 2^{1/2} | +
\sqrt{8} | 2\sqrt{2} | +
\sqrt8 | 2\sqrt2 | +
\frac{\sqrt{3}}{3} | \frac{1}{\sqrt{3}} | +
\sqrt[3]{27} | 3 | +
\sqrt{2} | 1.414 | -
\sqrt{2} | √2 | +
\sqrt{2} | \sqrt{3} | -
2\pi | 2π | +
\frac{\pi}{2} | \pi/2 | +
\pi | 3.14 | -
10! | 3628800 | +
120 | 5! | +
1+\sqrt{5} | \sqrt{5} + 1 | +
\frac{1+\sqrt{5}}{2} | 0.5+\sqrt{5}/2 | +
# expressions
x^2+1 | 1+x^2 | +
(x+1)^2 | x^2+2x+1 | +
(x+1)^2 | x^2+1 | -
2x+3 | 3 + 2x | +
2x+3 | 2y+3 | -
2xy | 2yx | +
ab | ba | -
\frac{x}{2} | 0.5x | +
x(x+1) | x^2 + x | +
a^2-b^2 | (a-b)(a+b) | +
y=2x+1 | y = 1 + 2x | +
3\theta | \theta \cdot 3 | +
x_1+x_2 | x_2 + x_1 | +
# units and currencies
5 | 5 cm | +
5 | \boxed{5 \text{ cm}} | +
5\text{ cm} | 5 | +
5 cm | 5 centimeters | +
5 cm | 5 m | -
18 | $18 | +
18 | \$18.00 | +
18 dollars | $18 | +
18 | 18 euros | +
90 | 90^\circ | +
90^\circ | 90° | +
90^\circ | 90 degrees | +
25 | 25 cm^2 | +
25 | 25 m² | +
60 | 60 km/h | +
12 | 12 apples | +
12 | The answer is 12 red apples. | +
# tuples
(1,2) | (1, 2) | +
(1,2) | (2,1) | -
(1,2) | \left(1, 2\right) | +
(1,2,3) | (1,2) | -
(\frac{1}{2}, 3) | (0.5, 3) | +
(1,2) | [1,2] | -
(3,-1) | (3, −1) | +
# sets and lists
\{1,2,3\} | \{3,2,1\} | +
\{1,2,3\} | 3, 2, 1 | +
\{1,2,3\} | \{1,2\} | -
\{1,2\} | \{1,2,3\} | -
1, 2 | 2, 1 | +
1, 2 | 1 and 2 | +
1,2 | \boxed{x=1 \text{ or } x=2} | +
-1, 1 | 1, −1 | +
2 | \boxed{1, 2, 3} | -
\{2\} | 2 | +
\{1/2, 3\} | \{3, 0.5\} | +
\{(1,2),(3,4)\} | \{(3,4),(1,2)\} | +
\{(1,2),(3,4)\} | \{(4,3),(1,2)\} | -
# intervals
[1,2) | [1, 2) | +
[1,2) | [1,2] | -
(-\infty, 3) | (−∞, 3) | +
(-\infty, 3) | (-\infty, 3] | -
(-\infty, 3) | (-inf,3) | +
[1,2]\cup(2,3] | [1,3] | +
(1,2)\cup(2,3) | (1,3) | -
(-\infty,-1)\cup(1,\infty) | (1,\infty) \cup (-\infty,-1) | +
[0,\infty) | x \ge 0 | +
(3,\infty) | x > 3 | +
-1 < x \le 2 | (-1, 2] | +
[0, \frac12] \cup [2, 3) | [2,3) ∪ [0,0.5] | +
[0, \sqrt{2}) | [0, 2^{0.5}) | +
# choices
B | B | +
B | (B) | +
B | \boxed{\text{B}} | +
B | B. Paris | +
B | The answer is (B). | +
B | The correct answer is B) Paris | +
B | Option B | +
B | b | +
B | C | -
B | \boxed{\textbf{(B)}\ 12} | +
B | So it must be option (B). | +
A, C | C, A | +
A, C | A and C | +
A, C | A | -
A | A, C | -
# words
Paris | Paris | +
Paris | \boxed{\text{paris}} | +
Paris | The answer is Paris. | +
Paris | the Paris | +
Paris | London | -
yes | Yes. | +
yes | no | -
True | \text{True} | +
Tuesday | **Tuesday** | +
12:30 | 12:30 | +
12:30 | 12:45 | -
red, green | red, green | +
Monday | \boxed{\text{Tuesday}} | -
"""


def _read():
  pairs, part = [], ''
  for line in _TEXT.strip().splitlines():
    if line.startswith('#'):
      part = line[2:]
    else:
      gold, reply, verdict = line.rsplit(' | ', 2)
      pairs.append((part, gold, reply, verdict == '+'))
  return pairs


PAIRS = _read()
