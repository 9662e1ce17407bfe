package box

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	vmsbox "github.com/marquee-ads/marquee/platform/vms/box"
)

// deadBound is how long the kernel may take to end what ran in a machine.
const deadBound = 20 * time.Second

// Config says what a machine is.
type Config struct {
	// Name is its hostname, at most 12 letters, digits and hyphens.
	Name string
	// Address is in the range of its network.
	Address netip.Addr
	// Folders are its own, by absolute path. They are empty at first and stay
	// when it loses its power.
	Folders []Folder
	// Files are files and folders of the box that it sees, read-only, by the
	// absolute path at which it does; not below a folder of its own, and below
	// /usr only where the host has something. /usr/local/bin is empty otherwise.
	Files map[string]string
}

// Folder is a folder of a machine.
type Folder struct {
	Path string
	// Limit makes it a disk of its own with so many bytes; 0 shares the box's.
	Limit int64
}

// Machine is one in a box.
type Machine struct {
	cfg     Config
	network *Network
	dir     string // in the box
	wire    string // its link's end at the switch

	mu    sync.Mutex
	power *power
}

// power is what a running machine is.
type power struct {
	process *os.Process
	ended   chan struct{}
	netns   string
	http    *http.Client
}

// Machine puts a machine into the network; it is switched off.
func (n *Network) Machine(cfg Config) (*Machine, error) {
	if len(cfg.Name) > 12 || cfg.Name == "" {
		return nil, fmt.Errorf("a machine's name has 1 to 12 characters, not %q", cfg.Name)
	}
	if !n.prefix.Contains(cfg.Address) {
		return nil, fmt.Errorf("the address %s of %s is not in %s", cfg.Address, cfg.Name, n.prefix)
	}
	m := &Machine{cfg: cfg, network: n, dir: filepath.Join(n.box.dir, cfg.Name), wire: "v-" + cfg.Name}
	for _, folder := range cfg.Folders {
		path := m.Path(folder.Path)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return nil, fmt.Errorf("make %s of %s: %w", folder.Path, cfg.Name, err)
		}
		if folder.Limit == 0 {
			continue
		}
		if err := unix.Mount("tmpfs", path, "tmpfs", 0, fmt.Sprintf("mode=755,size=%d", folder.Limit)); err != nil {
			return nil, fmt.Errorf("make a disk for %s of %s: %w", folder.Path, cfg.Name, err)
		}
	}
	if err := os.MkdirAll(filepath.Join(m.dir, "log"), 0o755); err != nil {
		return nil, fmt.Errorf("make the log folder of %s: %w", cfg.Name, err)
	}
	return m, nil
}

// Name is the machine's.
func (m *Machine) Name() string { return m.cfg.Name }

// Address is the machine's.
func (m *Machine) Address() netip.Addr { return m.cfg.Address }

// Path is where the box sees a path in one of the machine's folders.
func (m *Machine) Path(inMachine string) string { return filepath.Join(m.dir, "disk", inMachine) }

// Log is the file with the output of a program that Start started.
func (m *Machine) Log(program string) string { return filepath.Join(m.dir, "log", program+".log") }

// On switches the machine on: it has its name, address and folders, and runs
// nothing yet.
func (m *Machine) On(ctx context.Context) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.power != nil {
		return fmt.Errorf("the machine %s is on", m.cfg.Name)
	}
	group := m.network.box.group(m.cfg.Name)
	if err := makeGroups(group); err != nil {
		return fmt.Errorf("switch %s on: %w", m.cfg.Name, err)
	}
	spec, err := json.Marshal(machineSpec{Config: m.cfg, Dir: m.dir, Disk: m.Path("/"), Group: group})
	if err != nil {
		return err
	}
	socket := filepath.Join(m.dir, "first.sock")
	_ = os.Remove(socket) // of the last time
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("switch %s on: %w", m.cfg.Name, err)
	}
	listener.SetUnlinkOnClose(false)
	defer func() { _ = listener.Close() }()
	passed, err := listener.File()
	if err != nil {
		return fmt.Errorf("switch %s on: %w", m.cfg.Name, err)
	}
	defer passed.Close()
	output, err := os.OpenFile(m.Log("first"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("switch %s on: %w", m.cfg.Name, err)
	}
	defer output.Close()
	process, err := os.StartProcess("/proc/self/exe", []string{m.cfg.Name}, &os.ProcAttr{
		Env:   []string{roleVariable + "=" + roleMachine, specVariable + "=" + string(spec), "PATH=" + searchPath},
		Files: []*os.File{nil, output, output, passed},
		Sys: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		},
	})
	if err != nil {
		return fmt.Errorf("switch %s on: %w", m.cfg.Name, err)
	}
	p := &power{process: process, ended: make(chan struct{}), netns: fmt.Sprintf("/proc/%d/ns/net", process.Pid)}
	go func() {
		defer close(p.ended)
		_, _ = process.Wait()
	}()
	p.http = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	m.power = p
	defer func() {
		if err != nil {
			err = errors.Join(err, m.off())
		}
	}()
	// It answers when its root folder is in place.
	if _, err := m.run(ctx, p, "", "true"); err != nil {
		text, _ := os.ReadFile(m.Log("first"))
		return fmt.Errorf("switch %s on: %w: %s", m.cfg.Name, err, bytes.TrimSpace(text))
	}
	if err := ip(ctx,
		// The same hardware address each time, which others remember.
		fmt.Sprintf("link add %s type veth peer name eth0 address %s netns %d", m.wire, hardwareAddress(m.cfg.Address), process.Pid),
		"link set "+m.wire+" master "+m.network.bridge,
		"link set "+m.wire+" up",
	); err != nil {
		return err
	}
	_, err = m.run(ctx, p, strings.Join([]string{
		"link set lo up",
		"addr add " + netip.PrefixFrom(m.cfg.Address, m.network.prefix.Bits()).String() + " dev eth0",
		"link set eth0 up",
		"route add default via " + m.network.router.String(),
		"",
	}, "\n"), "ip", "-batch", "-")
	return err
}

// hardwareAddress is one that goes with an IPv4 address.
func hardwareAddress(of netip.Addr) net.HardwareAddr {
	a := of.As4()
	return net.HardwareAddr{0x02, 0, a[0], a[1], a[2], a[3]}
}

// Off cuts the machine from power: all its processes are gone at once, its
// folders stay. It returns when they are gone.
func (m *Machine) Off() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.off()
}

func (m *Machine) off() error {
	p := m.power
	if p == nil {
		return nil
	}
	m.power = nil
	// Unplugged first: the kernel says goodbye for sockets of killed processes,
	// which a machine without power does not.
	ctx, cancel := context.WithTimeout(context.Background(), deadBound)
	defer cancel()
	unplugged := ip(ctx, "link set "+m.wire+" nomaster")
	if err := p.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("switch %s off: %w", m.cfg.Name, err)
	}
	p.http.CloseIdleConnections()
	select {
	case <-p.ended:
	case <-ctx.Done():
		return fmt.Errorf("switch %s off: its processes did not end within %s", m.cfg.Name, deadBound)
	}
	// Its interfaces go with its network some time later, and a machine that is
	// switched on again wants the name.
	if unplugged == nil {
		_ = ip(ctx, "link del "+m.wire) // gone already
	}
	return nil
}

// Unplug cuts the machine from its network. It goes on running, and nobody is
// told: packets are lost both ways.
func (m *Machine) Unplug(ctx context.Context) error {
	return ip(ctx, "link set "+m.wire+" nomaster")
}

// Plug undoes Unplug.
func (m *Machine) Plug(ctx context.Context) error {
	return ip(ctx, "link set "+m.wire+" master "+m.network.bridge)
}

// Run runs a command in the machine to its end and returns what it printed; a
// status other than 0 is an error that holds it.
func (m *Machine) Run(ctx context.Context, input string, args ...string) (string, error) {
	p, err := m.on()
	if err != nil {
		return "", err
	}
	return m.run(ctx, p, input, args...)
}

func (m *Machine) on() (*power, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.power == nil {
		return nil, fmt.Errorf("the machine %s is off", m.cfg.Name)
	}
	return m.power, nil
}

func (m *Machine) run(ctx context.Context, p *power, input string, args ...string) (string, error) {
	var answer runAnswer
	if err := m.ask(ctx, p, "/run", programSpec{Args: args, Env: []string{"PATH=" + searchPath}, Input: input}, &answer); err != nil {
		return "", err
	}
	if answer.Status != 0 {
		return answer.Output, fmt.Errorf("%s in %s ended with %d: %s", strings.Join(args, " "), m.cfg.Name, answer.Status, strings.TrimSpace(answer.Output))
	}
	return answer.Output, nil
}

// Start starts a program in the machine under a name; its output is added to
// Log(name). Its environment is env alone.
func (m *Machine) Start(ctx context.Context, name string, env []string, args ...string) error {
	p, err := m.on()
	if err != nil {
		return err
	}
	return m.ask(ctx, p, "/start", programSpec{Name: name, Args: args, Env: env}, nil)
}

// Stop sends a program that was started a signal and returns when it has ended;
// what it started lives on. SIGKILL is a crash.
func (m *Machine) Stop(ctx context.Context, name string, signal syscall.Signal) error {
	p, err := m.on()
	if err != nil {
		return err
	}
	return m.ask(ctx, p, "/stop", stopSpec{Name: name, Signal: signal}, nil)
}

// Running says which of the started programs have not ended.
func (m *Machine) Running(ctx context.Context) ([]string, error) {
	p, err := m.on()
	if err != nil {
		return nil, err
	}
	var names []string
	return names, m.ask(ctx, p, "/running", struct{}{}, &names)
}

// ask asks the machine's first process.
func (m *Machine) ask(ctx context.Context, p *power, path string, question, answer any) error {
	body, err := json.Marshal(question)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://machine"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := p.http.Do(request)
	if err != nil {
		return fmt.Errorf("ask the machine %s: %w", m.cfg.Name, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return fmt.Errorf("ask the machine %s: %w", m.cfg.Name, err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the machine %s: %s", m.cfg.Name, bytes.TrimSpace(text))
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

// Dial connects from the machine's place in the network: to an address and port,
// not to a name. The connection is the caller's.
func (m *Machine) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := m.Within(func() error {
		var err error
		conn, err = new(net.Dialer).DialContext(ctx, network, address) // one address: on this thread
		return err
	})
	return conn, err
}

// Within runs f on a thread that is in the machine's network, for sockets that
// f makes on that very thread.
func (m *Machine) Within(f func() error) error {
	p, err := m.on()
	if err != nil {
		return err
	}
	if err := vmsbox.Within(p.netns, f); err != nil {
		return fmt.Errorf("in the network of %s: %w", m.cfg.Name, err)
	}
	return nil
}
