package vms

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// hostProgram is a program of the host that virtual machines need, and the
// Debian package that has it.
type hostProgram struct {
	name, pkg string
	box       bool // only for a box, not with the host's own libvirt
}

func hostPrograms() []hostProgram {
	return []hostProgram{
		{"mmdebstrap", "mmdebstrap", false},
		{"mkfs.ext4", "e2fsprogs", false},
		{"qemu-img", "qemu-utils", false},
		{"qemu-system-x86_64", "qemu-system-x86", false},
		{"virsh", "libvirt-clients", false},
		{"xsltproc", "xsltproc", false},
		{"ssh", "openssh-client", false},
		{"libvirtd", "libvirt-daemon", true},
		{"virtlogd", "libvirt-daemon", true},
		{"dnsmasq", "dnsmasq-base", true},
		{"unshare", "util-linux", true},
		{"nsenter", "util-linux", true},
	}
}

// qemuDriver is libvirt's part for QEMU, a package of its own.
const qemuDriver = "libvirt-daemon-driver-qemu"

// MissingPackagesError are the host's missing parts.
type MissingPackagesError struct {
	Programs []string // what is not there
	Packages []string // Debian's names of the packages that have it
}

// Command is the line that installs them.
func (m *MissingPackagesError) Command() string {
	sudo := "sudo "
	if os.Getuid() == 0 {
		sudo = ""
	}
	return sudo + "apt-get install --yes --no-install-recommends " + strings.Join(m.Packages, " ")
}

func (m *MissingPackagesError) Error() string {
	return fmt.Sprintf("this host lacks %s: %s (as root, make vms INSTALL=1 does that)", strings.Join(m.Programs, ", "), m.Command())
}

// missing looks for everything that the host must have.
func missing(box bool) *MissingPackagesError {
	var m MissingPackagesError
	lacks := func(program, pkg string) {
		m.Programs = append(m.Programs, program)
		if !slices.Contains(m.Packages, pkg) {
			m.Packages = append(m.Packages, pkg)
		}
	}
	for _, p := range hostPrograms() {
		if (!p.box || box) && lookPath(p.name) == "" {
			lacks(p.name, p.pkg)
		}
	}
	if box {
		drivers, err := filepath.Glob("/usr/lib*/*/libvirt/connection-driver/libvirt_driver_qemu.so")
		flat, flatErr := filepath.Glob("/usr/lib*/libvirt/connection-driver/libvirt_driver_qemu.so")
		if err == nil && flatErr == nil && len(drivers)+len(flat) == 0 {
			lacks("libvirt's driver for QEMU", qemuDriver)
		}
		if os.Getuid() != 0 && lookPath("newuidmap") == "" {
			lacks("newuidmap", "uidmap")
		}
	}
	if len(m.Programs) == 0 {
		return nil
	}
	return &m
}

// lookPath also looks where an ordinary user's PATH does not.
func lookPath(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return ""
}

// install installs the host's missing packages with apt-get.
func install(ctx context.Context, m *MissingPackagesError, say func(string)) error {
	if os.Getuid() != 0 || lookPath("apt-get") == "" {
		return fmt.Errorf("cannot install packages here: %w", m)
	}
	say("installing " + strings.Join(m.Packages, " "))
	for _, args := range [][]string{
		{"update", "--quiet=2"},
		append([]string{"install", "--yes", "--quiet=2", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=120"}, m.Packages...),
	} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, lastLines(string(out), 8))
		}
	}
	return nil
}

// userBox says what an ordinary user lacks for a box.
func userBox() error {
	if os.Getuid() == 0 {
		return nil
	}
	tun, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("the machines' network needs /dev/net/tun (%w): modprobe tun && chmod 666 /dev/net/tun as root, or run this as root", err)
	}
	tun.Close()
	name := os.Getenv("USER")
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		text, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("a box for an ordinary user needs %s: %w: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s as root", file, err, name)
		}
		uid := strconv.Itoa(os.Getuid())
		if !slices.ContainsFunc(strings.Split(string(text), "\n"), func(line string) bool {
			return strings.HasPrefix(line, name+":") || strings.HasPrefix(line, uid+":")
		}) {
			return fmt.Errorf("%s has no line for %s: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 %s as root", file, name, name)
		}
	}
	return nil
}

// checkNetwork refuses a network that the host has already: its machines, or
// what the host has there, would not be reached.
func checkNetwork(network string) error {
	want, err := netip.ParsePrefix(network)
	if err != nil {
		return fmt.Errorf("--network %s: %w", network, err)
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list the host's networks: %w", err)
	}
	for _, i := range interfaces {
		addresses, err := i.Addrs()
		if err != nil {
			return fmt.Errorf("list the networks of %s: %w", i.Name, err)
		}
		for _, address := range addresses {
			if there, err := netip.ParsePrefix(address.String()); err == nil && there.Overlaps(want) {
				return fmt.Errorf("--network %s overlaps %s, where this host has %s: choose another", network, there.Masked(), i.Name)
			}
		}
	}
	return nil
}

// perMachine is what one emulated machine takes beside its own memory, in MiB:
// QEMU itself and its translated code, which is bounded to 256.
const perMachine = 320

// reserve is left to the rest of the host, in MiB.
const reserve = 512

// checkMemory refuses machines that do not fit into the memory that is free.
// Sizes are MiB; have is what machines of the same environment hold already.
func checkMemory(available int, servers, serverMemory, clients, clientMemory, have int) error {
	need := servers*(serverMemory+perMachine) + clients*(clientMemory+perMachine) - have
	if need+reserve <= available {
		return nil
	}
	return fmt.Errorf("not enough memory: %d servers of %d MiB and %d clients of %d MiB need %d MiB more (with %d MiB each for QEMU, and %d MiB for the rest of this host), %d MiB are free: "+
		"take --servers 1, fewer --clients, or less --server-memory (from 512) and --client-memory (from 640)",
		servers, serverMemory, clients, clientMemory, need+reserve, perMachine, reserve, available)
}

// availableMemory is what the kernel would give without swapping, in MiB. A
// container's own bound is not in it.
func availableMemory() (int, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("read the free memory: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) > 1 && fields[0] == "MemAvailable:" {
			kib, err := strconv.Atoi(fields[1])
			if err != nil {
				return 0, fmt.Errorf("read the free memory: %w", err)
			}
			return kib / 1024, nil
		}
	}
	return 0, errors.New("read the free memory: /proc/meminfo has no MemAvailable")
}

// Disk space in MiB: an image and its build, and what a machine writes in a day
// of tests.
const (
	imageSpace   = 4096
	machineSpace = 1024
)

// checkDisk refuses machines whose disks do not fit.
func checkDisk(dir string, machines int, imageThere bool) error {
	need := machines * machineSpace
	if !imageThere {
		need += imageSpace
	}
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return fmt.Errorf("read the free disk space of %s: %w", dir, err)
	}
	free := int(s.Bavail * uint64(s.Bsize) >> 20)
	if need <= free {
		return nil
	}
	return fmt.Errorf("not enough disk space: %d machines need %d MiB below %s, %d MiB are free: make room (marquee vms destroy and rm -r .marquee/images remove what older runs left), or take fewer machines",
		machines, need, dir, free)
}

// trialLimit bounds the trial boot. A kernel gets there in 1 s with KVM and in
// 3 s under emulation; there are hosts where KVM hangs.
const trialLimit = 10 * time.Second

// kvmDevice is how the kernel offers KVM.
const kvmDevice = "/dev/kvm"

// tryKVM boots a kernel that has nothing to start, and says whether KVM works
// here: nil, or why not.
func tryKVM(ctx context.Context, device, kernel string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	f.Close()
	serial, err := os.CreateTemp("", "marquee-kvm-")
	if err != nil {
		return fmt.Errorf("try KVM: %w", err)
	}
	serial.Close()
	defer os.Remove(serial.Name())
	trial, cancel := context.WithTimeout(ctx, trialLimit)
	defer cancel()
	cmd := exec.CommandContext(trial, "qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-m", "256", "-smp", "1",
		"-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot", "-serial", "file:"+serial.Name(),
		"-kernel", kernel, "-append", "console=ttyS0 panic=-1 root=none")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	said, readErr := os.ReadFile(serial.Name())
	switch {
	case trial.Err() != nil:
		return fmt.Errorf("a trial boot with KVM did not get anywhere in %s", trialLimit)
	case err != nil:
		said, _, _ := strings.Cut(string(out), "\n")
		return fmt.Errorf("a trial boot with KVM failed: %w: %s", err, said)
	case readErr != nil:
		return fmt.Errorf("a trial boot with KVM: %w", readErr)
	case !strings.Contains(string(said), "Unable to mount root fs"):
		return fmt.Errorf("a trial boot with KVM ended early: %s", lastLines(string(said), 1))
	}
	return nil
}

// lastLines are the last lines of a text that say something.
func lastLines(text string, n int) string {
	lines := slices.DeleteFunc(strings.Split(text, "\n"), func(line string) bool { return strings.TrimSpace(line) == "" })
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.ReplaceAll(strings.Join(lines, "\n"), "\r", "")
}
