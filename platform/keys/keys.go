// Package keys makes and keeps the certificates, gossip keys and tokens of an
// environment on the operator's machine.
package keys

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Role is what a machine does for the cluster.
type Role string

// The roles. Jobs run on clients.
const (
	Server Role = "server"
	Client Role = "client"
)

// The names by which certificates say what their holder is. Whoever verifies a
// server by its name needs not know its address.
const (
	ConsulServerName = "server.dc1.consul"
	NomadServerName  = "server.global.nomad"
	// OperatorName is the common name of the operator's certificate.
	OperatorName = "operator"
)

// Node is a machine that keys are made for.
type Node struct {
	Name string
	Role Role
	// Address stands in its certificate; empty when it is not known before the
	// machine is there.
	Address string
}

// Nodes are server-1 to server-<servers> and client-1 to client-<clients>.
func Nodes(servers, clients int) []Node {
	var nodes []Node
	for i := range servers {
		nodes = append(nodes, Node{Name: fmt.Sprintf("server-%d", i+1), Role: Server})
	}
	for i := range clients {
		nodes = append(nodes, Node{Name: fmt.Sprintf("client-%d", i+1), Role: Client})
	}
	return nodes
}

// Keys are a folder of keys, which is readable by its owner only.
type Keys struct {
	// Dir is the folder.
	Dir     string
	Secrets Secrets
	// CA are the certificates, in PEM, that the agents and the operator trust.
	CA []byte
}

// NodeKeys is what one machine gets.
type NodeKeys struct {
	Role Role
	// Certificate and Key are in PEM.
	Certificate, Key []byte
	// ConsulToken is its Consul agent's.
	ConsulToken string
}

// ErrMissing says that there are no keys in a folder, or not for a node.
var ErrMissing = errors.New("there are no keys")

// nodeName keeps names usable as a host name, in a certificate and as a file.
var nodeName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

func checkNodes(nodes []Node) error {
	seen := map[string]bool{}
	for _, n := range nodes {
		switch {
		case !nodeName.MatchString(n.Name):
			return fmt.Errorf("%q is no name for a machine: want lower-case letters, digits and hyphens, a letter first, at most 63 of them", n.Name)
		case n.Name == OperatorName || n.Name == "localhost":
			return fmt.Errorf("%q is no name for a machine: it means something else in certificates", n.Name)
		case n.Role != Server && n.Role != Client:
			return fmt.Errorf("the role of %s is %q: want %s or %s", n.Name, n.Role, Server, Client)
		case seen[n.Name]:
			return fmt.Errorf("two machines are called %s", n.Name)
		}
		seen[n.Name] = true
	}
	return nil
}

// Ensure makes what is missing of an environment's keys and of these machines',
// and never changes what is there. It can be interrupted and called again, and
// by several processes at once. A certificate that has expired is an error that
// says how to renew it.
func Ensure(dir string, nodes []Node, now time.Time) (*Keys, error) {
	if err := checkNodes(nodes); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("make the folder of keys: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "nodes"), 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of keys: %w", err)
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, d := range []string{dir, filepath.Join(dir, "nodes")} {
		if err := os.Chmod(d, 0o700); err != nil {
			return nil, fmt.Errorf("make the folder of keys its owner's: %w", err)
		}
	}
	k := &Keys{Dir: dir}
	ca, err := k.ensureCA(now)
	if err != nil {
		return nil, err
	}
	if err := k.ensurePair(ca, operatorPair(), now); err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if err := k.ensurePair(ca, nodePair(n), now); err != nil {
			return nil, err
		}
	}
	if err := ensureSSH(dir); err != nil {
		return nil, err
	}
	if err := k.ensureSecrets(nodes); err != nil {
		return nil, err
	}
	k, err = Load(dir)
	if err != nil {
		return nil, err
	}
	return k, k.CheckExpiry(now)
}

// Load reads keys that were made before. The error is ErrMissing where there
// are none, and names the file and the fix where one is damaged or readable by
// others.
func Load(dir string) (*Keys, error) {
	k := &Keys{Dir: dir}
	text, err := k.read("secrets.json")
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &k.Secrets); err != nil {
		return nil, fmt.Errorf("read %s: %w: restore it from a copy, or make all keys anew in an empty folder", filepath.Join(dir, "secrets.json"), err)
	}
	if err := k.Secrets.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, "secrets.json"), err)
	}
	k.CA, err = k.read("ca.pem")
	return k, err
}

// read reads a file of the folder. Only what is meant for others may be readable
// by them.
func (k *Keys) read(name string) ([]byte, error) {
	path := filepath.Join(k.Dir, name)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s is not there: marquee keys new makes it", ErrMissing, path)
	}
	if err != nil {
		return nil, fmt.Errorf("read the keys: %w", err)
	}
	if secret(name) && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others (mode %04o): chmod 600 %s, and rotate what it holds if others use this machine", path, info.Mode().Perm(), path)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the keys: %w", err)
	}
	return text, nil
}

// secret says which files hold something that must not be known.
func secret(name string) bool {
	return strings.HasSuffix(name, "-key.pem") || name == "secrets.json" || name == "ssh"
}

// Node returns what one machine gets.
func (k *Keys) Node(name string) (NodeKeys, error) {
	token := k.Secrets.Nodes[name]
	if token == "" {
		return NodeKeys{}, fmt.Errorf("%w for the machine %s in %s: marquee keys new makes them", ErrMissing, name, k.Dir)
	}
	p := nodePair(Node{Name: name})
	certificate, err := k.read(p.certificateFile)
	if err != nil {
		return NodeKeys{}, err
	}
	key, err := k.read(p.keyFile)
	if err != nil {
		return NodeKeys{}, err
	}
	parsed, err := parseCertificate(filepath.Join(k.Dir, p.certificateFile), certificate)
	if err != nil {
		return NodeKeys{}, err
	}
	role := Client
	if slices.Contains(parsed.DNSNames, ConsulServerName) {
		role = Server
	}
	return NodeKeys{Role: role, Certificate: certificate, Key: key, ConsulToken: token}, nil
}

// CAFile is the path of the certificates that are trusted.
func (k *Keys) CAFile() string { return filepath.Join(k.Dir, "ca.pem") }

// OperatorCertFile is the path of the operator's certificate.
func (k *Keys) OperatorCertFile() string { return filepath.Join(k.Dir, "operator.pem") }

// OperatorKeyFile is the path of its key.
func (k *Keys) OperatorKeyFile() string { return filepath.Join(k.Dir, "operator-key.pem") }

// SSHKeyFile is the path of the operator's key for SSH; that of the public half
// ends in .pub.
func (k *Keys) SSHKeyFile() string { return filepath.Join(k.Dir, "ssh") }

// OperatorTLS shows the operator's certificate and trusts the environment's
// servers, which have to prove serverName: ConsulServerName or NomadServerName.
func (k *Keys) OperatorTLS(serverName string) (*tls.Config, error) {
	certificate, err := tls.LoadX509KeyPair(k.OperatorCertFile(), k.OperatorKeyFile())
	if err != nil {
		return nil, fmt.Errorf("read the operator's certificate: %w", err)
	}
	return TLS(k.CA, certificate, serverName)
}

// TLS is how a program of an environment calls a server of it.
func TLS(ca []byte, certificate tls.Certificate, serverName string) (*tls.Config, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("there is no certificate in ca.pem")
	}
	return &tls.Config{
		RootCAs: pool, Certificates: []tls.Certificate{certificate}, ServerName: serverName, MinVersion: tls.VersionTLS13,
	}, nil
}
