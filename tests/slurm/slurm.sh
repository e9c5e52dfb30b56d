#!/usr/bin/env bash
# A real Slurm cluster on this machine, for tests: no systemd, no cgroup, loopback only. Debian, as root.
#
#   slurm.sh install DIR        Debian's packages; a second call does nothing
#   slurm.sh start DIR [PID]    munged, slurmctld and one slurmd per node; returns when all nodes are idle.
#                               With PID all of it ends, and DIR goes, when that process has ended
#   slurm.sh lose DIR NODE      kills a node with everything that runs on it, as a power failure does
#   slurm.sh revive DIR NODE    starts it again
#   slurm.sh stop DIR           cancels jobs, and ends only what start began, by pid file
#   . DIR/env                   puts the cluster into this shell (SLURM_CONF)
#
# From the environment: NODES (2), CPUS (2) and MEM (4000 MiB) per node, GPUS per node (1; an empty file stands for
# each), PORT (slurmctld; slurmd of node i listens on PORT + i).
set -euo pipefail
command=${1:?install, start, lose, revive or stop}
mkdir -p "${2:?a folder}"
DIR=$(realpath "$2")
NODES=${NODES:-2} CPUS=${CPUS:-2} MEM=${MEM:-4000} GPUS=${GPUS:-1} PORT=${PORT:-$((17000 + $$ % 4000 * 4))}
HOST=$(hostname -s)
export SLURM_CONF=$DIR/slurm.conf

install() {
  local want=(slurmctld slurmd slurm-client munge)
  dpkg -s "${want[@]}" >/dev/null 2>&1 && return
  # the packages must not start daemons of their own
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  export DEBIAN_FRONTEND=noninteractive
  apt-get install -y --no-install-recommends "${want[@]}" ||
    { apt-get update && apt-get install -y --no-install-recommends "${want[@]}"; }
}

configure() {
  mkdir -p "$DIR"/{state,log,run,munge}
  chmod 711 "$DIR" # munged runs as another user
  : >"$DIR/gres.conf"
  for i in $(seq "$NODES"); do
    for g in $(seq "$GPUS"); do
      : >>"$DIR/run/gpu.$i.$g"
      echo "NodeName=n$i Name=gpu File=$DIR/run/gpu.$i.$g" >>"$DIR/gres.conf"
    done
  done
  cat >"$SLURM_CONF" <<CONF
ClusterName=smelt
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/socket
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/state/%n
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd.%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd.%n.log
# processes are found by their parents; nothing is pinned or confined, so memory limits do not bite
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
# a test waits for jobs, not for the scheduler
SchedulerParameters=batch_sched_delay=0,sched_min_interval=50000,sched_interval=1,bf_interval=1
MinJobAge=600
KillWait=3
CompleteWait=0
SlurmdTimeout=5
MessageTimeout=5
GresTypes=gpu
NodeName=n[1-$NODES] NodeHostname=$HOST NodeAddr=127.0.0.1 Port=[$((PORT + 1))-$((PORT + NODES))] CPUs=$CPUS \\
  RealMemory=$MEM Gres=gpu:$GPUS
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
  printf 'export SLURM_CONF=%q\n' "$SLURM_CONF" >"$DIR/env"
}

wait_for() {
  for _ in $(seq 300); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.1
  done
  echo "gave up on: $*" >&2
  tail -n 5 "$DIR"/log/*.log >&2
  return 1
}
idle() { [ "$(timeout 5 sinfo -hN -t idle,mix,alloc -o %N | sort -u | wc -l)" = "$NODES" ]; }
alive() { [ -s "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }

start() {
  configure
  # its own key and socket: an installed munge stays untouched
  (umask 077 && head -c 1024 /dev/urandom >"$DIR/munge/key")
  chown -R munge: "$DIR/munge" && chmod 711 "$DIR/munge"
  # a daemon that kept this script's output open would keep whoever reads it waiting
  exec 3>&1 >>"$DIR/log/start.log" 2>&1
  runuser -u munge -- munged --force --socket="$DIR/munge/socket" --key-file="$DIR/munge/key" \
    --pid-file="$DIR/munge/pid" --log-file="$DIR/munge/log" --seed-file="$DIR/munge/seed" 3>&-
  slurmctld </dev/null 3>&-
  for i in $(seq "$NODES"); do slurmd -N "n$i" </dev/null 3>&-; done
  wait_for idle
  exec >&3 3>&-
  sinfo
  if [ -n "${1:-}" ]; then
    setsid "$0" watch "$DIR" "$1" >/dev/null 2>&1 </dev/null &
  fi
}

# ends the cluster after the process that wanted it
watch() {
  while kill -0 "$1" 2>/dev/null; do sleep 0.5; done
  stop
  rm -rf "$DIR"
}

lose() {
  local ids steps=""
  ids=$(squeue -h -w "$1" -o %A | sort -u | paste -sd'|')
  [ -z "$ids" ] || steps=$(pgrep -f "^slurmstepd: \[($ids)\." || true)
  # the daemon first: it must not tell how its jobs ended
  # shellcheck disable=SC2046,SC2086
  kill -9 "$(cat "$DIR/run/slurmd.$1.pid")" $steps $(for step in $steps; do pgrep -P "$step"; done)
  rm -f "$DIR/run/slurmd.$1.pid"
}

revive() { slurmd -N "$1" </dev/null >>"$DIR/log/start.log" 2>&1; }

stop() {
  local pids=() file
  if alive "$DIR/run/slurmctld.pid"; then
    timeout 10 squeue -ho %A | sort -u | xargs -r timeout 10 scancel --full || true
    sleep 0.5
  fi
  for file in "$DIR"/run/slurm*.pid "$DIR/munge/pid"; do
    if alive "$file"; then pids+=("$(cat "$file")"); fi
  done
  [ ${#pids[@]} = 0 ] || kill "${pids[@]}"
  for _ in $(seq 100); do
    kill -0 "${pids[@]}" 2>/dev/null || return 0
    sleep 0.1
  done
}
"$command" "${@:3}"
