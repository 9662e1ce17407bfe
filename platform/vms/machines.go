package vms

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/marquee-ads/marquee/platform/bootstrap"
	"github.com/marquee-ads/marquee/platform/environment"
	"github.com/marquee-ads/marquee/platform/keys"
	"github.com/marquee-ads/marquee/platform/vms/image"
)

// Machine is one virtual machine.
type Machine struct {
	Name    string    `json:"name"`
	Role    keys.Role `json:"role"`
	Address string    `json:"address"`
	Memory  int       `json:"memory"` // MiB
	State   string    `json:"state"`  // as libvirt says: running, shut off, …; missing; unknown
	Console string    `json:"console"`
}

// uri is where libvirt is reached.
func (e *Environment) uri() (string, error) {
	if e.settings.LibvirtURI != "" {
		return e.settings.LibvirtURI, nil
	}
	return e.box.URI()
}

// Environ are the variables with which libvirt's own tools find the machines.
func (e *Environment) Environ() []string {
	uri, err := e.uri()
	if err != nil {
		return nil
	}
	return []string{"LIBVIRT_DEFAULT_URI=" + uri}
}

// Machines are the environment's machines, and how libvirt says they are.
func (e *Environment) Machines() []Machine {
	var found []Machine
	for _, n := range e.Nodes() {
		memory := e.settings.ClientMemory
		if n.Role == keys.Server {
			memory = e.settings.ServerMemory
		}
		found = append(found, Machine{Name: n.Name, Role: n.Role, Address: n.Address, Memory: memory,
			State: e.state(n.Name), Console: e.SerialLog(n.Name)})
	}
	return found
}

// domain is the name that Terraform gives to a machine in libvirt.
func (e *Environment) domain(node string) string { return e.config.Name + "-" + node }

func (e *Environment) virsh(ctx context.Context, args ...string) (string, error) {
	uri, err := e.uri()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "virsh", append([]string{"--quiet", "--connect", uri}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C") // its words are read
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	if err != nil {
		return text, fmt.Errorf("virsh %s: %w: %s", args[0], err, text)
	}
	return text, nil
}

func (e *Environment) state(node string) string {
	text, err := e.virsh(context.Background(), "domstate", e.domain(node))
	switch {
	case err == nil:
		return text
	case strings.Contains(text, "failed to get domain"):
		return "missing"
	default:
		return "unknown"
	}
}

// Healthy is nil when all machines are members and ready, else what is not. It
// must run where the machines can be reached.
func (e *Environment) Healthy(ctx context.Context, env *environment.Environment) error {
	consul, err := env.Consul()
	if err != nil {
		return err
	}
	nomad, err := env.Nomad()
	if err != nil {
		return err
	}
	servers, clients := e.names()
	return bootstrap.Healthy(ctx, bootstrap.Cluster{Consul: consul, Nomad: nomad, Keys: env.Keys(), Progress: e.config.Say}, servers, clients)
}

func (e *Environment) names() (servers, clients []string) {
	for _, n := range e.Nodes() {
		if n.Role == keys.Server {
			servers = append(servers, n.Name)
		} else {
			clients = append(clients, n.Name)
		}
	}
	return servers, clients
}

// SSH is the command line that logs in to a machine as root with the operator's
// key, for a process in the machines' network.
func (e *Environment) SSH(env *environment.Environment, node string, command ...string) ([]string, error) {
	nodes := e.Nodes()
	at := slices.IndexFunc(nodes, func(n keys.Node) bool { return n.Name == node })
	if at < 0 {
		servers, clients := e.names()
		return nil, fmt.Errorf("no machine is called %q: there are %s", node, strings.Join(append(servers, clients...), ", "))
	}
	// A machine that is made again has another host key at the same address.
	return append([]string{"ssh", "-i", env.Keys().SSHKeyFile(), "-o", "IdentitiesOnly=yes",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
		"root@" + nodes[at].Address}, command...), nil
}

// Replace makes one machine again, with today's keys and settings. Its disk stays
// unless disk is set: then it is a new one, from an image with today's programs.
func (e *Environment) Replace(ctx context.Context, node string, disk bool) error {
	unlock, err := e.lock()
	if err != nil {
		return err
	}
	defer unlock()
	servers, clients := e.names()
	if all := slices.Concat(servers, clients); !slices.Contains(all, node) {
		return fmt.Errorf("no machine is called %q: there are %s", node, strings.Join(all, ", "))
	}
	t, err := e.terraform(ctx)
	if err != nil {
		return err
	}
	// A new seed starts the machine again, and so does a new disk.
	replace := fmt.Sprintf("-replace=module.machines.libvirt_combustion.seed[%q]", node)
	if disk {
		if err := e.moveToNewImage(ctx, t); err != nil {
			return err
		}
		replace = fmt.Sprintf("-replace=module.machines.libvirt_volume.root[%q]", node)
	}
	err = e.apply(ctx, t, replace)
	if errors.Is(err, errTook) {
		e.config.Say(fmt.Sprintf("trying once more: %v", err))
		err = e.apply(ctx, t, replace)
	}
	if err != nil || e.settings.OlderImages[node] == "" || !disk {
		return err
	}
	delete(e.settings.OlderImages, node)
	return e.save()
}

// moveToNewImage makes the checkout's image that of machines to come. Those that
// run keep theirs, which stays for as long.
func (e *Environment) moveToNewImage(ctx context.Context, t *terraform) error {
	o := e.config.Image
	o.Root, o.Progress = e.config.Root, e.config.Say
	img, err := image.Ensure(ctx, o)
	if err != nil {
		return err
	}
	if e.settings.OlderImages == nil {
		e.settings.OlderImages = map[string]string{}
	}
	if img.Stamp != e.settings.Image {
		for _, n := range e.Nodes() {
			if e.settings.OlderImages[n.Name] == "" {
				e.settings.OlderImages[n.Name] = e.settings.Image
			}
		}
		e.settings.Image = img.Stamp
	}
	// First: an interrupted apply must not cost a machine its image.
	if err := e.save(); err != nil {
		return err
	}
	uri, err := e.uri()
	if err != nil {
		return err
	}
	boxDir := ""
	if e.Box() != nil {
		boxDir = e.box.Dir()
	}
	return e.writeVariables(t, img, uri, boxDir)
}

// Check is one thing that the host must have, or better had.
type Check struct {
	Name     string `json:"name"`
	OK       bool   `json:"ok"`
	Optional bool   `json:"optional"` // it works without
	Found    string `json:"found"`    // what there is, or what to do
}

// Doctor looks at all that Up would look at.
func (e *Environment) Doctor(ctx context.Context) []Check {
	var checks []Check
	add := func(name string, err error, found string) {
		if err != nil {
			found = err.Error()
		}
		checks = append(checks, Check{Name: name, OK: err == nil, Found: found})
	}
	var packages error
	if m := missing(true); m != nil {
		packages = m
	}
	add("packages", packages, "all there")
	who := "root"
	if os.Getuid() != 0 {
		who = "an ordinary user, in a user namespace"
	}
	add("box", userBox(), who)
	available, err := availableMemory()
	if err == nil {
		s := defaults()
		err = checkMemory(available, s.Servers, s.ServerMemory, s.Clients, s.ClientMemory, 0)
	}
	add("memory", err, fmt.Sprintf("%d MiB free", available))
	stamps, globErr := filepath.Glob(filepath.Join(image.Folder(e.config.Root), "*", "image.json"))
	built := globErr == nil && len(stamps) > 0
	add("disk", checkDisk(e.config.Root, defaults().Servers+defaults().Clients, built), "enough for 5 machines")
	terraform := Check{Name: "terraform", OK: true}
	if terraform.Found = or(lookPath("terraform"), lookPath("tofu")); terraform.Found == "" {
		terraform.Optional, terraform.Found = true, "OpenTofu takes its place; it is built at first, in about 4 minutes"
	}
	checks = append(checks, terraform)
	if !built {
		return append(checks, Check{Name: "image", Optional: true, Found: "will be built (about 2 minutes): marquee vms image does it now"})
	}
	img, err := image.Open(e.config.Root, filepath.Base(filepath.Dir(stamps[0])))
	add("image", err, img.Disk)
	if err != nil {
		return checks
	}
	kvm := Check{Name: "kvm", OK: true, Optional: true, Found: "works"}
	if err := tryKVM(ctx, kvmDevice, img.Kernel); err != nil {
		kvm.OK, kvm.Found = false, fmt.Sprintf("machines are emulated, five of them in about three minutes: %v", err)
	}
	return append(checks, kvm)
}

// EnsurePackages looks for the host's packages, box says whether also for those
// of a libvirt of our own, and installs the missing ones if that is wanted.
func EnsurePackages(ctx context.Context, box, mayInstall bool, say func(string)) error {
	m := missing(box)
	switch {
	case m == nil:
		return nil
	case mayInstall:
		return install(ctx, m, say)
	default:
		return m
	}
}
