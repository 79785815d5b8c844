"""The derivation in English: for each step its title and its words; formulas stand between backticks."""

TEXTS: dict[str, tuple[str, str]] = {
    "model": (
        "The model and its outputs",
        "A linear model turns the features `x` into one number for each class: a row of the weights `W` times `x`, plus a"
        " bias. These numbers are the logits `o`. They may have any sign and size, and they do not sum to anything.",
    ),
    "softmax": (
        "Softmax makes probabilities",
        "The exponential makes every logit positive, and dividing by the sum of all exponentials makes them sum to one."
        " Each `S[i]` depends on every logit, through the sum: this is why the derivative will have two cases.",
    ),
    "maximum": (
        "Why the maximum is subtracted",
        "Adding the same number to all logits changes nothing: it multiplies the fraction above and below by the same"
        " factor. With the largest logit `m` subtracted no exponential is larger than 1, and one of them is 1, so that"
        " nothing overflows and the sum is never 0. In float64 `exp(o[i])` alone is infinite from 710 on.",
    ),
    "prediction": (
        "The prediction",
        "The exponential keeps the order, so the class with the largest logit is the class with the largest probability:"
        " to predict, no softmax is needed. A difference of two logits is the logarithm of the ratio of their"
        " probabilities.",
    ),
    "quotient-rule": (
        "The quotient rule",
        "`S[i]` is a fraction, so its derivative is: derivative of the top times the bottom, minus the top times"
        " derivative of the bottom, over the bottom squared. The top depends on `o[j]` only if `i` and `j` are the"
        " same class; the bottom always does.",
    ),
    "diagonal": (
        "The derivative by the class's own logit",
        "For `i = j` the top of the fraction is differentiated too. One fraction splits into two, and each of them is"
        " made of probabilities: raising its own logit raises a probability, most of all at one half.",
    ),
    "off-diagonal": (
        "The derivative by another class's logit",
        "For `i ≠ j` the top of the fraction is a constant and the first term is zero. What is left is the product of two"
        " probabilities with a minus sign: what one class gains the others lose.",
    ),
    "jacobian": (
        "Both cases in one matrix",
        "`delta(i, j)` is 1 where `i = j` and 0 elsewhere, and joins the two cases. All derivatives together are the"
        " Jacobian `J`. It is symmetric, and its rows sum to zero, because the probabilities always sum to one.",
    ),
    "cross-entropy": (
        "The loss",
        "Cross-entropy compares the probabilities with the target `y`, which says how much of each class is right. For a"
        " single right class only one term is left: minus the logarithm of that class's probability. It is 0 if"
        " the probability is 1 and grows without bound as it goes to 0.",
    ),
    "loss-by-probability": (
        "The loss by a probability",
        "The derivative of a logarithm is one over its argument. Each probability stands in one term of the sum, so the"
        " others vanish. Where the target is 0 the derivative is 0.",
    ),
    "chain-rule": (
        "The chain rule",
        "The logit `o[j]` moves every probability, and every probability moves the loss. The influences add up: a sum over"
        " all classes `i` of how much the loss changes with `S[i]`, times how much `S[i]` changes with `o[j]`.",
    ),
    "two-cases": (
        "The sum, in two parts",
        "One of the terms has `i = j` and takes the diagonal of the Jacobian; all others take the off-diagonal. Two minus"
        " signs, one from the loss and one from the Jacobian, make the second part positive.",
    ),
    "collected": (
        "Collecting the terms",
        "The probabilities below the line cancel. `y[j] * S[j]` is just the term that the second sum leaves out; put back,"
        " the sum runs over all classes, and `S[j]` stands before it.",
    ),
    "targets": (
        "Targets sum to one",
        "A one-hot target `h` is 1 at the right class and 0 elsewhere. Label smoothing takes a part `ε` of it and spreads"
        " it over all `V` classes. Both sum to one, and so does every target that is a distribution.",
    ),
    "gradient": (
        "The gradient is S − y",
        "With a sum of one the formula becomes as simple as it can be: the probabilities minus the target. Back-propagation"
        " needs nothing else from the softmax and the loss. The entries sum to zero: what is pulled up is pushed"
        " down elsewhere.",
    ),
    "parameters": (
        "Into the parameters",
        "The chain rule goes on into whatever made the logits. For a linear model each weight gets the error of its class"
        " times its feature, each bias the error alone, and the features, which may be the output of an earlier layer,"
        " get the errors weighted by `W`.",
    ),
    "descent": (
        "One step downhill",
        "Going against the gradient with a step of size `η` makes the loss smaller. It must for small steps; here it does"
        " for `η = 0.5` with any logits, because the curvature of this loss is never more than"
        " half of the features' squared length plus one.",
    ),
    "training": (
        "A whole training",
        "The mean over `N` rows has the mean of their gradients: two matrix products around `P - Y`. Repeated steps from"
        " weights of zero train a classifier of three classes on fifteen points; the loss starts at `log(3)` and falls at"
        " every step.",
    ),
    "hessian": (
        "The curvature is the Jacobian",
        "The target is a constant, so the second derivative of the loss is the first derivative of the softmax. It"
        " is never negative in any direction, which makes the loss convex: training a linear model has one lowest point, and"
        " Newton's method finds it.",
    ),
    "any-target": (
        "Targets that do not sum to one",
        "Nothing but the last step used the sum. For any weights `r` in place of a target the probabilities are multiplied"
        " by their sum. Whoever writes `S - y` for such a target has a gradient whose entries do not sum"
        " to zero, and which is wrong.",
    ),
    "class-weights": (
        "Class weights",
        "Weights `w` of the classes multiply the target: the loss is that of a target `w[i] * y[i]`, which need not"
        " sum to one, and has its gradient.",
    ),
    "temperature": (
        "Temperature",
        "Logits `z` divided by a temperature `τ` make softer probabilities if `τ` is above 1 and sharper ones below. Every"
        " step here is about the divided logits `o`; by the logits before it the gradient has one more"
        " factor, often forgotten.",
    ),
    "z-loss": (
        "The z-loss",
        "The logarithm of the sum of exponentials, `lse`, has the softmax as its gradient. A small penalty on its square"
        " keeps the logits from drifting away together, which the loss alone does not notice, and only changes the"
        " factor of the probabilities.",
    ),
    "digits": (
        "Which form keeps its digits",
        "On paper both forms are the same. On a computer the first subtracts two numbers of the size of the logits, and what"
        " is left of a loss of 0.4 at logits near 1e12 has four digits. The second takes the distances to the maximum"
        " first, which are exact, and keeps all its digits.",
    ),
}

WORDS: dict[str, str] = {
    "title": "Softmax, cross-entropy, and why the gradient is S − y",
    "derivation": "The derivation",
    "beyond": "Beyond",
    "target": "target",
    "label_smoothing": "label smoothing",
    "temperature": "temperature",
    "logits": "logits",
    "proved": "proved in letters for three classes",
    "not-proved": "SymPy is not installed: not proved in letters",
    "computed": "computed with 50 digits: off by",
    "undefined": "not decided by these numbers (∞ times 0, or fewer than fifty digits apart)",
    "reference": "softgrad.reference, {what}: off by",
    "kernel": "kernel, {what}: off by",
    "wrong": "THIS DOES NOT HOLD",
    "loss-after": "loss after {steps} steps",
    "accuracy": "{right} of {rows} points right",
    "naive": "lse − o, in float64",
    "stable": "log s − (o − m), in float64",
    "exact": "exact, for the logits as float64 holds them",
    "offset": "logits + {offset}",
    "summary": "{checks} checks, {wrong} wrong",
}
