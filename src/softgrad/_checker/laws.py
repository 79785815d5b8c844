"""The laws a softmax, a loss, its gradient and its Jacobian obey: their names, the usual mistake, and how to fix it."""

from __future__ import annotations

# name: (the likely mistake, the fix)
LAWS: dict[str, tuple[str, str]] = {
    "shape": ("The result does not have the shape the mathematics gives it.", "return that shape"),
    "changes its input": (
        "The function writes to the arrays it was given; its caller's data are gone afterwards.",
        "work on a copy: `x = x - x.max(...)` instead of `x -= x.max(...)`",
    ),
    "no gradient": (
        "The value is not connected to the logits: something like .item(), .detach(), .data or NumPy cuts the graph.",
        "compute the value from the logits with PyTorch's own operations",
    ),
    "sign": ("It is the exact answer with the opposite sign.", "the loss is −Σ y log S, its gradient S − y"),
    "mean against sum": (
        "The batch is summed where its mean is asked for, or the reverse.",
        "divide loss and gradient by the same number, or state the reduction you mean by reduction=",
    ),
    "mean over every element": (
        "The mean runs over rows and classes, N·V numbers.",
        "sum over the classes first, then take the mean over the rows",
    ),
    "double softmax": (
        "The softmax is applied twice: probabilities go where logits are expected.",
        "hand over the logits; the loss does its own softmax",
    ),
    "wrong axis": (
        "The softmax runs over the rows (or over everything), not over the classes.",
        "use axis=-1 (dim=-1), with keepdims=True for maximum and sum",
    ),
    "sigmoid instead of softmax": ("Each class goes through a sigmoid of its own.", "S = exp(o) / Σ exp(o)"),
    "label smoothing by ε/(V − 1)": (
        "ε is spread over the V − 1 other classes.",
        "y' = (1 − ε) y + ε/V, over all V classes, as PyTorch smooths",
    ),
    "multiplied by the temperature": ("Logits are multiplied by τ.", "divide them: u = o / τ"),
    "inner derivative forgotten": (
        "The gradient is the one by the transformed logits u; the factor ∂u/∂o (1/τ for a temperature) is missing.",
        "multiply the gradient by ∂u/∂o",
    ),
    "logarithm to base 2": ("The logarithm is to base 2: bits instead of nats.", "use the natural logarithm"),
    "logarithm to base 10": ("The logarithm is to base 10.", "use the natural logarithm"),
    "logarithm forgotten": ("The value is −Σ y S.", "take the logarithm: −Σ y log S (nll_loss wants log_softmax)"),
    "logarithm returned": ("It is log S, not S.", "take exp of it, or call softmax instead of log_softmax"),
    "soft targets that do not sum to one": (
        "S − y is the gradient (and lse − Σ y o the loss) only for Σ y = 1; these targets sum to something else.",
        "multiply S (and lse) by Σ y of the row, or normalise the targets",
    ),
    "ignored rows counted in the mean": (
        "The mean divides by all rows, the ignored ones too.",
        "divide by the number (the weights) of the rows kept",
    ),
    "class weights left out of the mean": (
        "The weighted sum is divided by the number of rows.",
        "divide by the sum of the weights of the labels, Σ w[y], as PyTorch does",
    ),
    "target not subtracted": ("The gradient is S; −y is missing.", "subtract 1 at each row's label"),
    "gradient by the probabilities": (
        "−y/S is the gradient by S, not by the logits.",
        "multiply it by the softmax's Jacobian; the product is S − y",
    ),
    "diagonal of the Jacobian only": (
        "Only ∂S_i/∂o_i = S_i (1 − S_i) is used; every S_i depends on every logit.",
        "off the diagonal add −S_i S_j: diag(S) − S Sᵀ",
    ),
    "softmax derivative twice": (
        "S − y, which is already the gradient by the logits, went through the softmax's Jacobian once more.",
        "pass S − y on as it is",
    ),
    "sign off the diagonal": ("Off the diagonal there is +S_i S_j.", "∂S_i/∂o_j = −S_i S_j for i ≠ j"),
    "diagonal left out": ("diag(S) is missing.", "diag(S) − S Sᵀ"),
    "transposed": ("Rows and columns of the Jacobian are swapped.", "rows are the S_i, columns the o_j"),
    "not normalised": ("exp(o − max) is not divided by its sum.", "divide by the sum over the classes"),
    "upstream gradient ignored": (
        "backward does not multiply by grad_output: right only while the loss is the last operation, with factor 1.",
        "return grad_output * (S - y) from backward",
    ),
    "shift invariance": (
        "A constant added to a row's logits changes nothing in the mathematics, but does here.",
        "compute from o − max(o) of each row, with no clipping and no constant added to exp, sum or logarithm",
    ),
    "maximum not subtracted": (
        "exp of the logits themselves overflows (or all of them underflow).",
        "subtract each row's maximum first: e = exp(o - o.max(-1, keepdims=True))",
    ),
    "one maximum for all rows": (
        "The maximum of the whole batch is subtracted: a row far below it underflows to 0/0.",
        "subtract each row's own maximum: o.max(-1, keepdims=True)",
    ),
    "log of zero": (
        "A probability underflows to 0 and its logarithm is −∞ (times a target of 0: NaN).",
        "take log S from the logits: (o − m) − log Σ exp(o − m)",
    ),
    "log of a clipped probability": (
        "The logarithm sees S + 1e-9 or a clipped S: the loss stops growing where the model is most wrong.",
        "take log S from the logits: (o − m) − log Σ exp(o − m); then nothing needs clipping",
    ),
    "division by a zero probability": (
        "A probability underflows to 0 and something is divided by it.",
        "use S − y, in which nothing is divided",
    ),
    "0·∞": (
        "A masked class (logit −inf) has log S = −∞, and a target of 0 times that is NaN.",
        "pick log S of the label by index, or set 0·∞ to 0 (masked=False if your logits are never −inf)",
    ),
    "masked logits": ("A logit of −inf is not a class of probability 0.", "keep −inf as it is: exp(−inf) = 0"),
    "digits lost to the offset": (
        "lse − o_y (or exp(o − lse)) subtracts two large numbers: the digits of the answer are rounded away.",
        "subtract the maximum before anything else: log Σ exp(o − m) − (o_y − m), sums in float32 or better",
    ),
    "digits of float32": (
        "An answer of float64 logits right to some seven digits: something is float32 or adds an epsilon.",
        "keep float64 throughout, and compute log S from the logits with nothing added",
    ),
    "rows sum to one": ("The probabilities of a row do not sum to one.", "divide by the sum of the same row"),
    "rows sum to zero": (
        "Each row of the gradient S − y, and of the Jacobian, sums to zero; here one does not.",
        "compare with S − y (Jacobian: diag(S) − S Sᵀ)",
    ),
    "value": ("It is not −Σ y log S; it is no usual mistake.", "compare with softgrad.reference.cross_entropy"),
    "gradient": ("It is not S − y; it is no usual mistake.", "compare with softgrad.reference.cross_entropy_with_grad"),
    "softmax": ("It is not exp(o) / Σ exp(o); it is no usual mistake.", "compare with softgrad.reference.softmax"),
    "Jacobian": (
        "It is not diag(S) − S Sᵀ; it is no usual mistake.",
        "compare with softgrad.reference.softmax_jacobian",
    ),
}

# What forgetting an option is called.
FORGOTTEN = {
    "label_smoothing": "forgotten label smoothing",
    "temperature": "forgotten temperature",
    "logit_scale": "forgotten logit scale",
    "softcap": "forgotten softcap",
    "z_loss": "forgotten z-loss",
    "class_weight": "forgotten class weights",
    "sample_weight": "forgotten sample weights",
    "ignore_index": "ignored rows not left out",
}


def explained(law: str) -> tuple[str, str]:
    """The likely mistake behind a failing law, and its fix."""
    for option, name in FORGOTTEN.items():
        if law == name:
            return f"It is the answer without {option}.", f"apply {option}, or leave it out of this call"
    return LAWS[law]
