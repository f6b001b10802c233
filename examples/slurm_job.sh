#!/bin/bash
# Runs a program of daskbatch in one job of SLURM, on all of its nodes:
#
#     sbatch examples/slurm_job.sh program.py [arguments]
#
# The program makes its Batch by `Batch()`, as on a laptop: DASKBATCH_CLUSTER names the cluster.
#SBATCH --job-name=daskbatch
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --time=00:10:00
#SBATCH --output=daskbatch-%j.out

set -eu
cd "$SLURM_SUBMIT_DIR"

# The environment must be the same on all nodes: the same Python, the same packages. For example:
#     source /shared/venv/bin/activate
PYTHON=${PYTHON:-python}
# The network between the nodes, for example INTERFACE=ib0; by default the one that Dask chooses.
NETWORK=${INTERFACE:+--interface $INTERFACE}
# Ports, if a firewall is between the nodes: for example WORKER_PORTS=9100:9199.
PORTS=${WORKER_PORTS:+--worker-port $WORKER_PORTS}

# On the shared file system: the workers find the scheduler by a file here, and logs are here.
RUN=$SLURM_SUBMIT_DIR/daskbatch-$SLURM_JOB_ID
mkdir -p "$RUN"
# On the disk of each node: what does not fit into memory. Never on the shared file system.
SCRATCH=${SCRATCH_DIRECTORY:-${TMPDIR:-/tmp}}

# 1. The scheduler, on the first node. It starts when it has written its address.
"$PYTHON" -m distributed.cli.dask_scheduler $NETWORK --port 0 --no-dashboard \
    --scheduler-file "$RUN/scheduler.json" > "$RUN/scheduler.log" 2>&1 &
SCHEDULER=$!
WORKERS=
trap 'kill $WORKERS $SCHEDULER 2> /dev/null || true' EXIT
until [ -s "$RUN/scheduler.json" ]; do
    kill -0 $SCHEDULER || { cat "$RUN/scheduler.log"; exit 1; }
    sleep 0.2
done

# 2. The workers, on each node: one process and one slot for each CPU. Workers with nannies
#    (the default) leave in good order when SLURM ends the job.
srun "$PYTHON" -m distributed.cli.dask_worker $NETWORK $PORTS --no-dashboard \
    --scheduler-file "$RUN/scheduler.json" --local-directory "$SCRATCH" \
    --nworkers "$SLURM_CPUS_PER_TASK" --nthreads 1 > "$RUN/workers.log" 2>&1 &
WORKERS=$!

# 3. The program. Its tasks wait until workers have joined.
DASKBATCH_CLUSTER=$("$PYTHON" -c \
    'import json, sys; print(json.load(open(sys.argv[1]))["address"])' "$RUN/scheduler.json")
export DASKBATCH_CLUSTER
"$PYTHON" "$@"
