#!/usr/bin/env bash
# What of the lab must outlive the test that asked for it, or become PID 1 of a host. Called by lab.rs, as root.
#
#   lab.sh keep NUMBER HOST=SIZE...   takes lab NUMBER, removes what killed keepers left, makes the network and the hosts'
#                                     disks, and obeys: "on HOST...", "off HOST". Each host is a line: "ok ..." or "no ...".
#                                     When its standard input ends, for whatever reason, everything is removed.
#   lab.sh host NUMBER HOST           inside new namespaces: mounts the host's root and becomes its systemd
#
# Exit code 75 (EX_TEMPFAIL): another process has this lab.
#
# The lab's switch is a bridge in a network namespace of its own, so that nothing but one interface (the operator's
# station) is seen on the machine, and no firewall of the machine meddles. A host has network, UTS, IPC, PID, mount and
# cgroup namespaces; its root is an overlay over "/", whose upper layer is an ext4 of its own in a loop file.
set -euo pipefail
umask 022
PATH=/usr/sbin:/usr/bin:/sbin:/bin

verb=$1 number=$2
shift 2
lab=pgherd$number
home=/var/tmp/pgherd-lab/$number
# 198.18.0.0/15 is nobody's: RFC 2544 keeps it for tests of networks.
net=198.18.$number

fail() {
    printf 'no %s\n' "$*"
    exit 1
}

# ---- the keeper -----------------------------------------------------------------------------------------------------

# within SECONDS COMMAND...: repeats the command until it succeeds.
within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.02
    done
}

is_empty() { [ -z "$(ip netns pids "$1" 2>/dev/null)" ]; }
is_dead() { ! kill -0 "$1" 2>/dev/null; }
is_detached() { [ -z "$(losetup --associated "$1")" ]; }

# Kills all that runs in a host's network namespace; a host whose PID 1 is gone has nothing left (pid_namespaces(7)).
empty() {
    local pids
    pids=$(ip netns pids "$1" 2>/dev/null || true)
    # shellcheck disable=SC2086 # a list
    [ -z "$pids" ] || kill -KILL $pids 2>/dev/null || true
    within 10 is_empty "$1"
}

# The kernel unmounts a dead host's disk in its own time, and two mounts of one ext4 would destroy it.
settle() { within 20 is_detached "$home/$1/disk"; }

# remove NUMBER: all that there is of that lab, and of one that was killed half made or half removed.
remove() {
    local lab=pgherd$1 home=/var/tmp/pgherd-lab/$1 path
    for path in /run/netns/"$lab"-*; do
        [ -e "$path" ] || continue
        empty "${path##*/}" || fail "cannot end the processes of ${path##*/}"
    done
    for path in "$home"/*/disk; do
        [ -e "$path" ] || continue
        within 20 is_detached "$path" || fail "$path is still mounted"
    done
    for path in /run/netns/"$lab"-*; do
        [ -e "$path" ] || continue
        ip netns delete "${path##*/}"
    done
    # It went with its peer; a set-up that was killed may have left it alone.
    ip link delete "$lab" 2>/dev/null || true
    for path in "$cgroups/$lab"-*; do
        [ -e "$path" ] || continue
        within 5 remove_cgroup "$path" || true
    done
    rm -rf "$home"
}

# A lab whose lock nobody holds is nobody's.
remove_abandoned() {
    local path other
    for path in "${home%/*}"/*; do
        other=${path##*/}
        if [ ! -d "$path" ] || [ "$other" = "$number" ]; then continue; fi
        (
            exec 8>"/run/lock/pgherd$other.lock"
            flock --nonblock 8 || exit 0
            remove "$other"
        )
    done
}

remove_cgroup() { find "$1" -depth -type d -exec rmdir {} + 2>/dev/null; }

find_cgroups() {
    # Version 2 alone is enough for systemd, and every kernel mounts it somewhere.
    cgroups=$(findmnt --noheadings --first-only --output TARGET --types cgroup2)
    [ -n "$cgroups" ] || fail "cannot find cgroup2 among the mounts"
}

make_lab() {
    local host index=0
    install -d -m 0755 "${home%/*}" "$home"
    install -d -m 1777 "$home/shared"
    ssh-keygen -q -t ed25519 -N '' -C operator@lab -f "$home/id"
    printf '127.0.0.1 localhost\n%s station\n' "$net.254" >"$home/hosts"
    ip netns add "$lab-switch"
    ip -n "$lab-switch" link set dev lo up
    # Nobody speaks IPv6 here, and the packets with which it looks for itself would be seen by those that count.
    ip netns exec "$lab-switch" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 || true
    ip -n "$lab-switch" link add name switch type bridge forward_delay 0
    ip -n "$lab-switch" link set dev switch up
    ip link add name "$lab" type veth peer name station netns "$lab-switch"
    plug station
    ip address add "$net.254/24" dev "$lab"
    ip link set dev "$lab" up
    for host in "$@"; do
        index=$((index + 1))
        make_host "${host%%=*}" "${host##*=}" "$net.$index"
    done
}

plug() {
    ip -n "$lab-switch" link set dev "$1" master switch
    ip -n "$lab-switch" link set dev "$1" up
}

make_host() {
    local host=$1 size=$2 address=$3 dir=$home/$1
    mkdir -p "$dir/root"
    truncate -s "$size" "$dir/disk"
    # -m 0: full is full for root too.
    mkfs.ext4 -q -F -m 0 "$dir/disk"
    ssh-keygen -q -t ed25519 -N '' -C "$host" -f "$dir/hostkey"
    printf '%s %s %s\n' "$address" "$host" "$host.lab" >>"$home/hosts"
    printf '%s,%s %s\n' "$host" "$address" "$(cut -d ' ' -f 1,2 "$dir/hostkey.pub")" >>"$home/known_hosts"
    printf '%s\n' "Host $host" "    HostName $address" "    HostKeyAlias $host" >>"$home/ssh_config"
    ip netns add "$lab-$host"
    ip -n "$lab-switch" link add name "$host" type veth peer name eth0 netns "$lab-$host"
    plug "$host"
    ip -n "$lab-$host" link set dev lo up
    ip -n "$lab-$host" address add "$address/24" dev eth0
    ip -n "$lab-$host" link set dev eth0 up
    mkdir -p "$cgroups/$lab-$host"
}

finish_ssh_config() {
    printf '%s\n' "Host *" "    User root" "    IdentityFile $home/id" "    IdentitiesOnly yes" \
        "    UserKnownHostsFile $home/known_hosts" "    GlobalKnownHostsFile none" "    StrictHostKeyChecking yes" \
        "    BatchMode yes" "    ConnectTimeout 3" >>"$home/ssh_config"
}

# Answers for each host with the PID of its systemd, as the machine sees it.
turn_on() {
    local host dir started=()
    for host in "$@"; do
        dir=$home/$host
        if [ ! -d "$dir" ] || ! is_empty "$lab-$host"; then
            started+=(0)
            continue
        fi
        rm -f "$dir/init"
        (
            exec 9>&- </dev/null >>"$dir/console" 2>&1
            echo "$BASHPID" >"$cgroups/$lab-$host/cgroup.procs"
            exec setsid ip netns exec "$lab-$host" \
                unshare --uts --ipc --pid --mount --cgroup --fork --kill-child "$0" host "$number" "$host"
        ) &
        started+=($!)
        disown
    done
    for host in "$@"; do
        dir=$home/$host
        if [ "${started[0]}" = 0 ]; then
            echo "no $host: there is no such host, or it is on"
        elif within 20 has_booted "$dir" "${started[0]}" && [ -s "$dir/init" ]; then
            echo "ok $(cat "$dir/init")"
        else
            echo "no $host does not start: $(tail -n 5 "$dir/console" | tr '\n' ' ')"
        fi
        started=("${started[@]:1}")
    done
}

has_booted() { [ -s "$1/init" ] || ! kill -0 "$2" 2>/dev/null; }

# Nothing is told, nothing is synced by the host: what the page cache holds does get to its disk, since only processes die.
turn_off() {
    local host=$1 init
    if [ ! -s "$home/$host/init" ]; then
        echo "no $host: it is not on"
        return
    fi
    init=$(cat "$home/$host/init")
    rm -f "$home/$host/init"
    kill -KILL "$init" 2>/dev/null || true
    if within 10 is_dead "$init" && empty "$lab-$host" && settle "$host"; then
        echo ok
    else
        echo "no $host does not end"
    fi
}

keep() {
    local word hosts
    trap '' INT TERM HUP
    exec 9>"/run/lock/$lab.lock"
    flock --nonblock 9 || exit 75
    find_cgroups
    remove_abandoned
    remove "$number"
    trap 'remove "$number"' EXIT
    make_lab "$@"
    finish_ssh_config
    echo ok
    while read -r word hosts; do
        # shellcheck disable=SC2086 # a list
        case $word in
            on) turn_on $hosts ;;
            off) turn_off "$hosts" ;;
        esac
    done || true # whoever listened may be gone
}

# ---- a host ---------------------------------------------------------------------------------------------------------

become_host() {
    local host=$1 dir=$home/$1 r device init mounted seen
    # /proc is still the machine's, and so is the number.
    read -r init _ </proc/self/stat
    mount --make-rprivate /
    hostname "$host"
    mount -o loop "$dir/disk" "$dir/root"
    mkdir -p "$dir"/root/{upper,work,merged}
    r=$dir/root/merged
    mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/root/upper,workdir=$dir/root/work" "$r"
    # What the machine has on file systems of their own and the tests need; an overlay does not see into them.
    IFS=: read -ra seen <<<"${LAB_SEES:-}"
    for mounted in "${seen[@]}"; do
        if [ "$(stat -c %d "$mounted")" != "$(stat -c %d /)" ]; then
            mkdir -p "$r$mounted"
            mount --bind "$mounted" "$r$mounted"
            mount -o remount,bind,ro "$r$mounted"
        fi
    done
    # What NFS would be: one directory that every host has. It is on the machine's own disk, and no cut of the network takes it away.
    mkdir -p "$r/srv/shared"
    mount --bind "$home/shared" "$r/srv/shared"
    mount -t proc proc "$r/proc"
    # The machine's own settings: systemd-sysctl and its like must not reach them.
    mount --bind "$r/proc/sys" "$r/proc/sys"
    mount -o remount,bind,ro "$r/proc/sys"
    mount -t sysfs -o ro sysfs "$r/sys"
    mount -t cgroup2 cgroup "$r/sys/fs/cgroup"
    mount -t tmpfs -o mode=0755 dev "$r/dev"
    for device in 'null 1 3' 'zero 1 5' 'full 1 7' 'random 1 8' 'urandom 1 9' 'tty 5 0'; do
        # shellcheck disable=SC2086 # name, major, minor
        set -- $device
        mknod -m 0666 "$r/dev/$1" c "$2" "$3"
    done
    mkdir "$r/dev/shm" "$r/dev/pts"
    mount -t tmpfs -o mode=1777 shm "$r/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$r/dev/pts"
    ln -s pts/ptmx "$r/dev/ptmx"
    ln -s /proc/self/fd "$r/dev/fd"
    ln -s /proc/self/fd/0 "$r/dev/stdin"
    ln -s /proc/self/fd/1 "$r/dev/stdout"
    ln -s /proc/self/fd/2 "$r/dev/stderr"
    # systemd-tmpfiles empties them when it boots: never the machine's.
    mount -t tmpfs -o mode=0755 run "$r/run"
    mount -t tmpfs -o mode=1777 tmp "$r/tmp"
    # The labs themselves: an overlay does not bear that what is below it changes.
    mount -t tmpfs -o mode=0700,size=4k hidden "$r${home%/*}"
    [ -e "$r/etc/lab-host" ] || furnish "$host" "$dir" "$r"
    printf '%s\n' "$init" >"$dir/init.new"
    mv "$dir/init.new" "$dir/init"
    cd "$r"
    pivot_root . mnt
    umount --lazy /mnt
    exec env -i container=lab PATH=$PATH /lib/systemd/systemd --system --unit=multi-user.target \
        --log-target=console --show-status=0
}

# Makes a fresh host out of the machine's copy: nobody's clusters, keys, journals, or services.
furnish() {
    local host=$1 dir=$2 r=$3 system=$3/etc/systemd/system unit
    rm -rf "$system"/*.wants "$system"/*.requires "$r"/var/log/journal "$r"/var/lib/postgresql/* "$r"/etc/postgresql/* \
        "$r"/etc/pgherd "$r"/var/lib/pgherd "$r"/usr/local/lib/pgherd "$r"/etc/ssh/ssh_host_* "$r"/etc/machine-id \
        "$r"/etc/sudoers.d/* "$r"/root/.bashrc "$r"/root/.profile
    : >"$r/etc/fstab"
    : >"$r/etc/machine-id"
    printf '%s\n' "$host" >"$r/etc/hostname"
    cp "$home/hosts" "$r/etc/hosts"
    # What a boot starts is what is named here; the rest is hardware, other people's time, and the machine's own.
    for unit in "$r"/lib/systemd/system/{sysinit,sockets,local-fs,timers,multi-user,graphical,getty}.target.wants/*; do
        case ${unit##*/} in
            systemd-journald*.s* | systemd-tmpfiles-setup.service | systemd-sysusers.service | systemd-user-sessions.service) ;;
            *) ln -sf /dev/null "$system/${unit##*/}" ;;
        esac
    done
    for unit in systemd-{logind,networkd,resolved,timesyncd,random-seed,remount-fs}.service getty.target dev-hugepages.mount \
        dev-mqueue.mount systemd-journald-audit.socket; do
        ln -sf /dev/null "$system/$unit"
    done
    mkdir -p "$system/multi-user.target.wants"
    ln -sf /lib/systemd/system/ssh.service "$system/multi-user.target.wants/ssh.service"
    install -m 0600 "$dir/hostkey" "$r/etc/ssh/ssh_host_ed25519_key"
    install -m 0644 "$home/id.pub" "$r/etc/ssh/lab_keys"
    # UsePAM: Debian locks the password of postgres, and without PAM sshd takes that for a locked account.
    printf '%s\n' 'HostKey /etc/ssh/ssh_host_ed25519_key' 'AuthorizedKeysFile /etc/ssh/lab_keys .ssh/authorized_keys' \
        'PermitRootLogin prohibit-password' 'PasswordAuthentication no' 'UsePAM yes' 'UseDNS no' 'MaxStartups 100' \
        >"$r/etc/ssh/sshd_config.d/00-lab.conf"
    touch "$r/etc/lab-host"
}

case $verb in
    keep) keep "$@" ;;
    host) become_host "$@" ;;
    *) fail "unknown verb $verb" ;;
esac
