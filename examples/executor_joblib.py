"""Runs the parallel loops of scikit-learn, by a joblib backend for any executor."""

from joblib import parallel_config
from joblib.parallel import ParallelBackendBase
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

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
    search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": [0.01, 0.1, 1, 10]}, cv=3)
    with (
        BatchPoolExecutor(max_workers=2) as pool,
        parallel_config(ExecutorBackend(pool, workers=2), n_jobs=-1),
    ):
        search.fit(*load_iris(return_X_y=True))
    print("best:", search.best_params_, f"right in {search.best_score_:.0%}")
