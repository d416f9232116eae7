# What Python programs do all day: calls, attributes, dictionaries, lists, strings, floats, sorting, regexps.
import re
import sys


class Body:
    def __init__(self, n):
        self.x, self.y, self.v = n * 0.5, n * 0.25, 1.0 / (n + 1)

    def step(self, other):
        d = self.x - other.x + (self.y - other.y) * 0.5
        self.v += d / (d * d + 1.0)
        self.x += self.v * 0.01


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def words(n):
    state, found = 12345, {}
    for _ in range(n):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        word = "w%d" % (state % 997)
        found[word] = found.get(word, 0) + 1
    return found


total = 0
for round in range(int(sys.argv[1])):
    bodies = [Body(n) for n in range(12)]
    for _ in range(10):
        for a in bodies:
            for b in bodies:
                if a is not b:
                    a.step(b)
    total += int(sum(b.x for b in bodies) * 1e6) + fib(16)
    found = words(4000)
    text = " ".join(sorted(found, key=lambda w: (found[w], w)))
    total += len(re.findall(r"w[13579]+\b", text)) + sum(map(len, text.split()))
    total += sum(i * i % 7 for i in range(5000)) + sum([x for x in range(5000) if x & 3 == 1])
    total += int(str(3**500)[-9:])
print(total)
