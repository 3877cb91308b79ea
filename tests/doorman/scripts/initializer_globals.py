from alike import check

model = None


def load():
    global model
    model = ["loaded"]


def predict(x):
    model.append(x)
    return model[0], x, len(model) > 1


def calls(pool):
    print([pool.submit(predict, x).result() for x in range(3)], list(pool.map(predict, range(2))), model)


if __name__ == "__main__":
    check(calls, initializer=load)
