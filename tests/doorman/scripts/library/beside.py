def double(x):
    return 2 * x


class Kind:
    def __init__(self, x):
        self.x = x
