// Package machine makes the configuration of one machine of a cluster: the same
// static files that Terraform gives to a machine's role, and what differs from
// machine to machine.
package machine

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/marquee-ads/marquee/platform/keys"
)

// The metadata that says which jobs a client takes. "true" is yes; it can be
// changed while the machine runs.
const (
	Edge     = "marquee_edge"
	Services = "marquee_services"
	Data     = "marquee_data"
)

// Where things are on a machine.
const (
	CAFile    = "/etc/marquee/tls/ca.pem"
	CertFile  = "/etc/marquee/tls/node.pem"
	KeyFile   = "/etc/marquee/tls/node-key.pem"
	Artifacts = "/var/lib/marquee/artifacts"
	Volumes   = "/var/lib/marquee/volumes"
)

// The ports that callers from outside of the cluster are let in to on a machine
// of the edge: the gateway's and, reserved, the devices'.
var publicPorts = []string{"1883", "8080", "8081"}

// The ports that the operator is let in to on servers, beside SSH.
var operatorPorts = []string{"4646", "4700", "8501"}

// validJob keeps names usable as a folder.
var validJob = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,60}[a-z0-9])?$`)

// Node is what a machine is.
type Node struct {
	Name string
	Role keys.Role
	// Address is its own in the cluster's network, without a mask. Everything but
	// the APIs of servers listens on it alone.
	Address string
	// Servers are the addresses of all servers, its own among them if it is one.
	Servers []string
	// Pool is the node pool of a client; empty is Nomad's "default".
	Pool string
	// Meta is a client's metadata; see Edge, Services, Data.
	Meta map[string]string
	// DataJobs are the jobs, for example account-db, whose data a Data machine
	// keeps: a folder and a host volume each. Others have none of them.
	DataJobs []string
	// Public is the address on which public ports listen, the host network
	// "public"; empty where there are none.
	Public string
	// Interface is the network interface of Address; Nomad looks for it when it is
	// empty.
	Interface string
	// Networks are the addresses of the cluster's machines, as 10.0.0.0/24 or
	// 10.0.0.2-10.0.0.254. Empty is the /24 of Address but for its first address,
	// the router's: what comes through that is from outside.
	Networks []string
	// Operators are the addresses from which the operator calls.
	Operators []string
	// Tuned has failures noticed fast. Machines that may be starved of CPU, as
	// emulated ones are, must not be.
	Tuned bool
	// Chroot is what else tasks of the exec driver see: paths inside by paths of
	// the machine.
	Chroot map[string]string
	// CNIPath is the folder of CNI plugins; empty is Nomad's default.
	CNIPath string
}

// File is one of a machine.
type File struct {
	Content      []byte
	Mode         fs.FileMode
	Owner, Group string
}

// Folder is one of a machine.
type Folder struct {
	Path         string
	Mode         fs.FileMode
	Owner, Group string
}

// Command is a program of a machine.
type Command struct {
	Name string
	Args []string // the program's absolute path first
	User string   // as whom it runs
}

func (n Node) check() error {
	address, err := netip.ParseAddr(n.Address)
	switch {
	case n.Name == "":
		return errors.New("a machine needs a name")
	case err != nil || !address.Is4():
		return fmt.Errorf("the address of %s is %q: want an IPv4 address without a mask", n.Name, n.Address)
	case n.Role != keys.Server && n.Role != keys.Client:
		return fmt.Errorf("the role of %s is %q: want %s or %s", n.Name, n.Role, keys.Server, keys.Client)
	case len(n.Servers)%2 == 0:
		return fmt.Errorf("%s is told of %d servers: want an odd number of addresses, so that a majority is left when one is lost", n.Name, len(n.Servers))
	case n.Role == keys.Server && !slices.Contains(n.Servers, n.Address):
		return fmt.Errorf("%s is a server, and its address %s is not among those of the servers: %s", n.Name, n.Address, strings.Join(n.Servers, ", "))
	case n.Role == keys.Server && (n.Pool != "" || len(n.Meta) > 0 || n.Public != ""):
		return fmt.Errorf("%s is a server: node pool, metadata and public address are for clients, which run jobs", n.Name)
	}
	for _, server := range n.Servers {
		if _, err := netip.ParseAddr(server); err != nil {
			return fmt.Errorf("%q, a server that %s is told of, is no address", server, n.Name)
		}
	}
	if n.Public != "" {
		if _, err := netip.ParseAddr(n.Public); err != nil {
			return fmt.Errorf("the public address of %s is %q: want an address without a mask", n.Name, n.Public)
		}
	}
	for _, job := range n.DataJobs {
		if !validJob.MatchString(job) {
			return fmt.Errorf("%q, whose data %s is to keep, is no name of a job", job, n.Name)
		}
	}
	for _, network := range slices.Concat(n.Networks, n.Operators) {
		if !isRange(network) {
			return fmt.Errorf("%q, in the firewall of %s, is no range of addresses such as 10.0.0.0/24 or 10.0.0.2-10.0.0.254", network, n.Name)
		}
	}
	return nil
}

func isRange(text string) bool {
	if _, err := netip.ParsePrefix(text); err == nil {
		return true
	}
	first, last, _ := strings.Cut(text, "-")
	from, err := netip.ParseAddr(first)
	if err != nil {
		return false
	}
	to, err := netip.ParseAddr(last)
	return err == nil && from.Is4() && to.Is4() && from.Compare(to) <= 0
}

// Files are the machine's files by their path, from the checkout at root. Which
// role the keys were made for must be the machine's.
func Files(root string, n Node, k *keys.Keys) (map[string]File, error) {
	if err := n.check(); err != nil {
		return nil, err
	}
	own, err := k.Node(n.Name)
	if err != nil {
		return nil, err
	}
	if own.Role != n.Role {
		return nil, fmt.Errorf("the certificate of %s in %s is a %s's, and the machine is a %s", n.Name, k.Dir, own.Role, n.Role)
	}
	files := map[string]File{
		CAFile:   {Content: k.CA, Mode: 0o644, Owner: "root", Group: "marquee"},
		CertFile: {Content: own.Certificate, Mode: 0o640, Owner: "root", Group: "marquee"},
		KeyFile:  {Content: own.Key, Mode: 0o640, Owner: "root", Group: "marquee"},
	}
	static := filepath.Join(root, "terraform", "modules", "node", "files")
	for _, agent := range []string{"consul", "nomad"} {
		for _, name := range n.static(agent) {
			text, err := os.ReadFile(filepath.Join(static, agent, name))
			if err != nil {
				return nil, fmt.Errorf("read what every %s has: %w", n.Role, err)
			}
			files[filepath.Join("/etc", agent+".d", name)] = File{Content: text, Mode: 0o640, Owner: "root", Group: agent}
		}
	}
	firewall, err := os.ReadFile(filepath.Join(static, "nftables.conf"))
	if err != nil {
		return nil, fmt.Errorf("read the firewall of every machine: %w", err)
	}
	files["/etc/nftables.conf"] = File{Content: firewall, Mode: 0o755, Owner: "root", Group: "root"}
	files["/etc/marquee/firewall.nft"] = File{Content: n.firewall(), Mode: 0o644, Owner: "root", Group: "root"}
	for path, part := range map[string]struct {
		value any
		file  File
	}{
		"/etc/consul.d/node.json":     {n.consul(k.Secrets, own.ConsulToken), File{Mode: 0o640, Owner: "root", Group: "consul"}},
		"/etc/nomad.d/node.json":      {n.nomad(k.Secrets), File{Mode: 0o640, Owner: "root", Group: "nomad"}},
		"/etc/marquee/artifactd.json": {n.artifactd(), File{Mode: 0o644, Owner: "root", Group: "root"}},
	} {
		text, err := json.MarshalIndent(part.value, "", "  ")
		if err != nil {
			return nil, err
		}
		text = append(text, '\n')
		part.file.Content = text
		files[path] = part.file
	}
	return files, nil
}

// static are the names of the static files that an agent of the machine has.
func (n Node) static(agent string) []string {
	names := []string{"common.hcl", string(n.Role) + ".hcl"}
	if n.Tuned {
		names = append(names, "tuned.hcl")
	}
	if agent == "nomad" && n.keepsData() {
		names = append(names, "data.hcl")
	}
	return names
}

func (n Node) keepsData() bool { return n.Meta[Data] == "true" }

// object is a part of an agent's configuration in JSON.
type object map[string]any

func (n Node) consul(s keys.Secrets, token string) object {
	tokens := object{"agent": token}
	config := object{
		"node_name": n.Name, "bind_addr": n.Address, "retry_join": n.Servers, "encrypt": s.ConsulGossip,
		"acl": object{"tokens": tokens},
	}
	if n.Role == keys.Server {
		config["bootstrap_expect"] = len(n.Servers)
		tokens["initial_management"] = s.ConsulManagement
	}
	return config
}

func (n Node) nomad(s keys.Secrets) object {
	config := object{
		"name": n.Name, "bind_addr": n.Address,
		"advertise": object{"http": n.Address, "rpc": n.Address, "serf": n.Address},
	}
	if n.Role == keys.Server {
		config["consul"] = object{"token": s.ConsulNomadServer}
		config["server"] = object{
			"bootstrap_expect": len(n.Servers), "encrypt": s.NomadGossip, "server_join": object{"retry_join": n.Servers},
		}
		return config
	}
	config["consul"] = object{"token": s.ConsulNomadClient}
	client := object{
		"servers": withPort(n.Servers, 4647), "network_interface": n.networkInterface(),
		"node_pool": cmp.Or(n.Pool, "default"), "meta": n.Meta,
	}
	if n.Meta == nil {
		client["meta"] = object{}
	}
	networks := object{"private": object{"cidr": n.Address + "/32"}}
	if n.Public != "" {
		networks["public"] = object{"cidr": n.Public + "/32"}
	}
	client["host_network"] = networks
	if n.keepsData() && len(n.DataJobs) > 0 {
		volumes := object{}
		for _, job := range n.DataJobs {
			volumes[job+"-data"] = object{"path": filepath.Join(Volumes, job)}
		}
		client["host_volume"] = volumes
	}
	if len(n.Chroot) > 0 {
		client["chroot_env"] = n.Chroot
	}
	if n.CNIPath != "" {
		client["cni_path"] = n.CNIPath
	}
	config["client"] = client
	return config
}

// networkInterface is a name, or how Nomad finds it.
func (n Node) networkInterface() string {
	if n.Interface != "" {
		return n.Interface
	}
	return fmt.Sprintf(`{{ GetAllInterfaces | include "address" "^%s(/|$)" | attr "name" }}`, n.Address)
}

func (n Node) artifactd() object {
	if n.Role == keys.Server {
		return object{"role": n.Role}
	}
	return object{"role": n.Role, "servers": withPort(n.Servers, 4700)}
}

func withPort(addresses []string, port int) []string {
	all := make([]string, len(addresses))
	for i, a := range addresses {
		all[i] = a + ":" + strconv.Itoa(port)
	}
	return all
}

// firewall adds this machine's addresses and ports to the static rules' sets.
func (n Node) firewall() []byte {
	networks := n.Networks
	if len(networks) == 0 {
		// The address was checked.
		a := netip.MustParseAddr(n.Address).As4()
		networks = []string{fmt.Sprintf("%[1]d.%[2]d.%[3]d.2-%[1]d.%[2]d.%[3]d.254", a[0], a[1], a[2])}
	}
	var out bytes.Buffer
	add := func(set string, elements []string) {
		if len(elements) > 0 {
			fmt.Fprintf(&out, "add element inet marquee %s { %s }\n", set, strings.Join(elements, ", "))
		}
	}
	add("cluster", networks)
	if n.Role == keys.Server {
		add("operator_tcp", operatorPorts)
	}
	add("operators", n.Operators)
	if n.Public != "" {
		add("public_tcp", publicPorts)
	}
	return out.Bytes()
}

// Folders are those that the machine's programs need.
func Folders(n Node) []Folder {
	all := []Folder{
		{"/etc/marquee", 0o755, "root", "root"},
		{"/etc/marquee/tls", 0o755, "root", "root"},
		{"/etc/consul.d", 0o750, "root", "consul"},
		{"/etc/nomad.d", 0o750, "root", "nomad"},
		{"/var/lib/consul", 0o700, "consul", "consul"},
		{"/var/lib/marquee", 0o755, "root", "root"},
		{Artifacts, 0o755, "artifactd", "artifactd"},
	}
	if n.Role == keys.Server {
		return append(all, Folder{"/var/lib/nomad", 0o700, "nomad", "nomad"})
	}
	all = append(all,
		// Tasks run as other users and pass through.
		Folder{"/var/lib/nomad", 0o711, "root", "root"},
		Folder{Volumes, 0o711, "root", "root"})
	if n.keepsData() {
		for _, job := range n.DataJobs {
			all = append(all, Folder{filepath.Join(Volumes, job), 0o700, "nobody", "nogroup"})
		}
	}
	return all
}

// Commands are the programs that the machine runs, in the order of their start.
// Nomad on a client starts when the servers serve their keys and the Consul beside
// it has a leader (/v1/status/leader): before, it would try again only 15 to 30 s
// later.
func Commands(n Node) []Command {
	nomadUser := "root"
	if n.Role == keys.Server {
		nomadUser = "nomad"
	}
	return []Command{
		{"consul", []string{"/usr/local/bin/consul", "agent", "-config-dir=/etc/consul.d"}, "consul"},
		{"artifactd", []string{"/usr/local/bin/artifactd", "--config=/etc/marquee/artifactd.json"}, "artifactd"},
		{"nomad", []string{"/usr/local/bin/nomad", "agent", "-config=/etc/nomad.d"}, nomadUser},
	}
}

// Write makes the machine's folders and writes its files below rootfs: "/" on the
// machine itself. Owners that this machine does not know, and all when this is
// not root, are left out: then everything is the caller's.
func Write(rootfs string, n Node, files map[string]File) error {
	for _, f := range Folders(n) {
		path := filepath.Join(rootfs, f.Path)
		if err := os.MkdirAll(path, f.Mode); err != nil {
			return fmt.Errorf("make %s of %s: %w", f.Path, n.Name, err)
		}
		if err := os.Chmod(path, f.Mode); err != nil {
			return fmt.Errorf("make %s of %s: %w", f.Path, n.Name, err)
		}
		if err := own(path, f.Owner, f.Group); err != nil {
			return fmt.Errorf("make %s of %s: %w", f.Path, n.Name, err)
		}
	}
	for name, f := range files {
		if err := writeFile(filepath.Join(rootfs, name), f); err != nil {
			return fmt.Errorf("write %s of %s: %w", name, n.Name, err)
		}
	}
	return nil
}

// writeFile replaces a file whole: an agent that starts or reloads meanwhile
// reads the old one or the new.
func writeFile(path string, f File) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temp := path + ".new"
	if err := os.WriteFile(temp, f.Content, 0o600); err != nil {
		return err
	}
	if err := own(temp, f.Owner, f.Group); err != nil {
		return err
	}
	if err := os.Chmod(temp, f.Mode); err != nil {
		return err
	}
	return os.Rename(temp, path)
}

func own(path, owner, group string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	uid, gid := 0, 0
	if u, err := user.Lookup(owner); err == nil {
		uid, _ = strconv.Atoi(u.Uid) // a number on every system with numbers
	}
	if g, err := user.LookupGroup(group); err == nil {
		gid, _ = strconv.Atoi(g.Gid)
	}
	return os.Chown(path, uid, gid)
}
