"""Searches parameters by scikit-learn, whose loops run on an executor by a joblib backend."""

from joblib import parallel_config
from joblib.parallel import ParallelBackendBase
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from daskbatch import BatchPoolExecutor


class ExecutorBackend(ParallelBackendBase):
    supports_retrieve_callback = True

    def __init__(self, executor, workers):
        super().__init__(nesting_level=0)
        self.executor, self.workers = executor, workers

    def effective_n_jobs(self, n_jobs):
        return self.workers if n_jobs is None or n_jobs < 0 else n_jobs

    def submit(self, func, callback=None):
        future = self.executor.submit(func)
        future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, future):
        return future.result()


if __name__ == "__main__":
    digits, numbers = load_digits(return_X_y=True)
    search = GridSearchCV(SVC(), {"C": [0.1, 1, 10], "gamma": [0.0001, 0.001, 0.01]}, cv=3)
    with (
        BatchPoolExecutor(max_workers=2) as pool,
        parallel_config(ExecutorBackend(pool, workers=2), n_jobs=-1),
    ):
        search.fit(digits[:500], numbers[:500])
    print("   C   gamma  right")
    found = search.cv_results_
    for each, score in zip(found["params"], found["mean_test_score"], strict=True):
        print(f"{each['C']:4}  {each['gamma']:6}  {score:5.0%}")
    print("best:", search.best_params_, f"right in {search.best_score_:.0%}")
