"""Where scikit-learn is at home already: python examples/scikit_learn.py"""

from typing import Any

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from handful import SimCLRClassifier, SimCLREncoder


def main(**parameters: Any) -> dict[str, float]:
    """A classifier, and a pipeline on what an encoder learned from images without labels."""
    X, y = load_digits(return_X_y=True)  # rows of 8 × 8 pixels
    X, X_test, y, y_test = train_test_split(X, y, train_size=300, stratify=y, random_state=0)
    classifier = SimCLRClassifier("fast", preset="digits", random_state=0, **parameters)
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    found = {"three folds of 300 images": cross_val_score(classifier, X, y, cv=folds).mean()}
    found["the other images"] = classifier.fit(X, y).score(X_test, y_test)

    parameters.pop("downstream_steps", None)
    encoder = SimCLREncoder("fast", preset="digits", random_state=0, **parameters)
    pipeline = make_pipeline(encoder, StandardScaler(), LogisticRegression(max_iter=1000))
    found["logistic regression on h"] = pipeline.fit(X, y).score(X_test, y_test)
    for name, accuracy in found.items():
        print(f"{name}: {accuracy:.1%}")
    return found


if __name__ == "__main__":
    main()
