# The numbers of glmnet.json: optima found by glmnet, another algorithm (coordinate descent) in another language.
#
#   apt-get install r-base-core r-cran-glmnet r-cran-jsonlite
#   Rscript glmnet.R "$(python -c 'import sklearn.datasets as d, pathlib; print(pathlib.Path(d.__file__).parent / "data")')"
#
# glmnet minimises Σ a t ℓ / Σ a t + λ/2 ‖W‖², t being the row sum of y: C = 1 / (λ Σ a t).
# Weights, offsets and proportions are formulas of the row i and the class j, both from 0: regression_cases.py has them too.

library(glmnet)
data <- commandArgs(trailingOnly = TRUE)[1]
glmnet.control(fdev = 0, devmax = 1, pmin = 1e-15, mxit = 100000)

load <- function(name) {
  table <- as.matrix(read.csv(file.path(data, name), skip = 1, header = FALSE))
  last <- ncol(table)
  x <- unname(table[, -last])
  deviation <- sqrt(colMeans(sweep(x, 2, colMeans(x))^2))
  list(raw = x, scaled = sweep(sweep(x, 2, colMeans(x)), 2, deviation, "/"), y = unname(table[, last]))
}

rows <- function(n) 0:(n - 1)
weights <- function(n) 0.5 + (7 * rows(n)) %% 5 / 2
offsets <- function(n, k) outer(rows(n), 0:(k - 1), function(i, j) ((3 * i + 5 * j) %% 7 - 3) / 4)
proportions <- function(y, k) {
  n <- length(y)
  0.6 * outer(y, 0:(k - 1), "==") + outer(rows(n), 0:(k - 1), function(i, j) (1 + (i + 2 * j) %% 4) / 10)
}

# A path that ends at the λ wanted: glmnet starts each fit where the one before ended.
solve <- function(x, y, family, lambda, total, ...) {
  fit <- glmnet(x, y, family = family, alpha = 0, lambda = lambda, standardize = FALSE, thresh = 1e-24,
                maxit = 10000000, ...)
  stopifnot(fit$jerr == 0, length(fit$lambda) == length(lambda))
  at <- function(k) {
    if (family == "binomial") list(coef = t(unname(as.matrix(fit$beta[, k]))), intercept = array(unname(fit$a0[k])))
    else list(coef = unname(t(sapply(fit$beta, function(b) b[, k]))), intercept = unname(fit$a0[, k]))
  }
  answers <- lapply(seq_along(lambda), at)
  list(Cs = array(1 / (lambda * total)), coefs = lapply(answers, `[[`, "coef"),
       intercepts = lapply(answers, `[[`, "intercept"))
}

iris <- load("iris.csv")
wine <- load("wine_data.csv")
cancer <- load("breast_cancer.csv")
n <- length(iris$y); m <- length(wine$y); l <- length(cancer$y)
lambdas <- c(1, 0.1, 0.01)
soft <- proportions(iris$y, 3)
small <- list(x = cbind(-4:4, c(0, 0, 1, 0, 1, 1, 1, 0, 0)))

golden <- list(
  nine_rows_binomial = solve(small$x, c(0, 0, 0, 1, 1, 1, 1, 1, 1), "binomial", 1, 9),
  nine_rows_multinomial = solve(small$x, rep(0:2, each = 3), "multinomial", 1, 9),
  iris = solve(iris$raw, iris$y, "multinomial", lambdas, n),
  iris_no_intercept = solve(iris$raw, iris$y, "multinomial", lambdas, n, intercept = FALSE),
  iris_proportions = solve(iris$raw, soft, "multinomial", lambdas, sum(weights(n) * soft), weights = weights(n)),
  wine_weights = solve(wine$scaled, wine$y, "multinomial", lambdas, sum(weights(m)), weights = weights(m)),
  wine_offset = solve(wine$scaled, wine$y, "multinomial", lambdas, m, offset = offsets(m, 3)),
  cancer = solve(cancer$scaled, cancer$y, "binomial", lambdas, l),
  cancer_weights_offset = solve(cancer$scaled, cancer$y, "binomial", lambdas, sum(weights(l)), weights = weights(l),
                                offset = offsets(l, 1)[, 1])
)
golden$made_with <- paste("R", getRversion(), "glmnet", packageVersion("glmnet"))
writeLines(jsonlite::toJSON(golden, digits = NA, auto_unbox = TRUE), "glmnet.json")
