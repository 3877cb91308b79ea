class Part:
    def __init__(self, x):
        self.x = x


def build(x):
    return Part(x)
