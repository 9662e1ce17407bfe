package box

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Init is the first process of a box, called in its new namespaces: it gives
// libvirtd the folders and users it expects without touching the host's, starts
// it, restarts it when it ends, and reaps. It returns on TERM, with which
// everything in the box ends.
func Init(dir string) error {
	// /proc is still the host's: this process as the host knows it.
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return fmt.Errorf("read /proc/self: %w", err)
	}
	pid, err := strconv.Atoi(self)
	if err != nil {
		return fmt.Errorf("read /proc/self: %w", err)
	}
	started, err := startTime(pid)
	if err != nil {
		return fmt.Errorf("read /proc/self/stat: %w", err)
	}
	if os.Getpid() != 1 {
		return errors.New("the box's init runs outside of a new process namespace: marquee vms up starts it")
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGCHLD)
	if err := furnish(dir); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	text, err := json.Marshal(process{PID: pid, Started: started})
	if err != nil {
		return err
	}
	temp := filepath.Join(dir, ".process.json")
	if err := os.WriteFile(temp, text, 0o600); err != nil {
		return fmt.Errorf("say that the box runs: %w", err)
	}
	if err := os.Rename(temp, filepath.Join(dir, "process.json")); err != nil {
		return fmt.Errorf("say that the box runs: %w", err)
	}
	return supervise(signals, "virtlogd", "libvirtd")
}

// furnish mounts what libvirtd looks for. Everything is private to the box.
func furnish(dir string) error {
	if err := unix.Sethostname([]byte("box")); err != nil {
		return fmt.Errorf("name the box: %w", err)
	}
	m := mounter{}
	m.mount("proc", "/proc", "proc", 0, "")
	m.mount("sysfs", "/sys", "sysfs", 0, "")
	// A user namespace may not mount cgroups; nothing here needs them.
	m.mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755")
	m.folder("/run/libvirt")
	m.bind(filepath.Join(dir, "run"), "/run/libvirt")
	// libvirt's folders may be missing on the host, and are not made there.
	for _, sub := range []string{"lib", "log", "cache"} {
		host := "/var/" + sub
		upper, work := "/run/box/"+sub+".upper", "/run/box/"+sub+".work"
		m.folder(upper)
		m.folder(work)
		m.mount("overlay", host, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", host, upper, work))
		m.folder(host + "/libvirt")
		m.bind(filepath.Join(dir, sub), host+"/libvirt")
	}
	m.folder("/run/box/etc.upper")
	m.folder("/run/box/etc.work")
	if _, err := os.Stat("/etc/libvirt"); err != nil {
		m.mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir=/run/box/etc.upper,workdir=/run/box/etc.work")
		m.folder("/etc/libvirt")
	}
	m.bind(filepath.Join(dir, "etc"), "/etc/libvirt")
	// The user that libvirtd was compiled to expect, made by a package that the
	// box does without.
	m.with("/etc/passwd", "/run/box/passwd", "libvirt-qemu", "libvirt-qemu:x:64055:65534::/var/lib/libvirt:/usr/sbin/nologin")
	m.with("/etc/group", "/run/box/group", "kvm", "kvm:x:64056:")
	m.with("/run/box/group", "/run/box/group2", "libvirt-qemu", "libvirt-qemu:x:64055:")
	m.bind("/run/box/passwd", "/etc/passwd")
	m.bind("/run/box/group2", "/etc/group")
	return m.err
}

// mounter does one step after the other until one fails.
type mounter struct{ err error }

func (m *mounter) mount(source, target, kind string, flags uintptr, data string) {
	if m.err != nil {
		return
	}
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		m.err = fmt.Errorf("mount %s on %s in the box: %w", kind, target, err)
	}
}

func (m *mounter) bind(source, target string) {
	if m.err != nil {
		return
	}
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		m.err = fmt.Errorf("mount %s on %s in the box: %w", source, target, err)
	}
}

func (m *mounter) folder(path string) {
	if m.err != nil {
		return
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		m.err = fmt.Errorf("furnish the box: %w", err)
	}
}

// with copies a file of lines and adds one, unless a line with that name is there.
func (m *mounter) with(from, to, name, line string) {
	if m.err != nil {
		return
	}
	text, err := os.ReadFile(from)
	if err != nil {
		m.err = fmt.Errorf("furnish the box: %w", err)
		return
	}
	if !strings.HasPrefix(string(text), name+":") && !strings.Contains(string(text), "\n"+name+":") {
		text = append(text, line+"\n"...)
	}
	if err := os.WriteFile(to, text, 0o644); err != nil {
		m.err = fmt.Errorf("furnish the box: %w", err)
	}
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring the box's loopback up: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring the box's loopback up: %w", err)
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring the box's loopback up: %w", err)
	}
	return nil
}

// tooSoon is when a daemon that ends again is not restarted any more.
const tooSoon = 5 * time.Second

// supervise starts the daemons and reaps everything that ends in the box.
func supervise(signals <-chan os.Signal, names ...string) error {
	type daemon struct {
		name    string
		started time.Time
	}
	running := map[int]daemon{}
	start := func(name string) error {
		path, err := exec.LookPath(name)
		if err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
		p, err := os.StartProcess(path, []string{name}, &os.ProcAttr{
			Dir: "/", Env: os.Environ(), Files: []*os.File{nil, os.Stdout, os.Stderr},
		})
		if err != nil {
			return fmt.Errorf("start %s: %w", name, err)
		}
		running[p.Pid] = daemon{name, time.Now()}
		// Everything that ends is reaped below, by number.
		return p.Release()
	}
	for _, name := range names {
		if err := start(name); err != nil {
			return err
		}
	}
	for s := range signals {
		if s != unix.SIGCHLD {
			return nil
		}
		for {
			var status unix.WaitStatus
			pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
			if err != nil || pid <= 0 {
				break
			}
			d, ours := running[pid]
			if !ours {
				continue
			}
			delete(running, pid)
			how := fmt.Sprintf("%s ended (exit status %d, signal %d)", d.name, status.ExitStatus(), status.Signal())
			if time.Since(d.started) < tooSoon {
				return errors.New(how)
			}
			// Machines outlive a libvirtd: it finds them again.
			_, _ = io.WriteString(os.Stderr, how+": starting it again\n")
			if err := start(d.name); err != nil {
				return err
			}
		}
	}
	return nil
}
