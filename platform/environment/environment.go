// Package environment is a cluster of machines as its operator's machine knows
// it: where it is, and the keys to it.
package environment

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/marquee-ads/marquee/platform/artifacts"
	"github.com/marquee-ads/marquee/platform/files"
	"github.com/marquee-ads/marquee/platform/keys"
	"github.com/marquee-ads/marquee/platform/vms/box"
)

// artifactsPort is where the servers of an environment take artifacts.
const artifactsPort = "4700"

// Environment is a cluster of machines.
type Environment struct {
	Name string `json:"name"`
	// NomadAddr and ConsulAddr are https URLs of servers' APIs.
	NomadAddr  string `json:"nomad_addr"`
	ConsulAddr string `json:"consul_addr"`
	// CAFile is the path of the agents' CA.
	CAFile string `json:"ca_file"`
	// Servers and Edge are addresses at which the operator reaches the servers,
	// and everybody the gateways.
	Servers []string `json:"servers"`
	Edge    []string `json:"edge"`
	// Box is the folder of the box of namespaces in which the machines are; empty
	// when they can be reached from here.
	Box string `json:"box"`

	dir  string
	keys *keys.Keys
}

// Var is one environment variable.
type Var struct{ Name, Value string }

var validName = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$`)

// ValidName says what is wrong with the name of an environment.
func ValidName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("%q is no name for an environment: want lower-case letters, digits and hyphens, a letter first, at most 32 of them", name)
	}
	return nil
}

// Folder is where a checkout keeps an environment.
func Folder(root, name string) string {
	return filepath.Join(root, ".marquee", "environments", name)
}

// KeysFolder is where it keeps its keys.
func KeysFolder(root, name string) string { return filepath.Join(Folder(root, name), "keys") }

// Names are the environments that a checkout knows.
func Names(root string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(Folder(root, "*"), "environment.json"))
	if err != nil {
		return nil, fmt.Errorf("list the environments: %w", err)
	}
	names := make([]string, 0, len(found))
	for _, path := range found {
		names = append(names, filepath.Base(filepath.Dir(path)))
	}
	slices.Sort(names)
	return names, nil
}

// ErrUnknown says that the checkout has no such environment.
var ErrUnknown = errors.New("no such environment")

// Load reads an environment and its keys. The error names what is missing and
// how to get it.
func Load(root, name string) (*Environment, error) {
	if err := ValidName(name); err != nil {
		return nil, err
	}
	path := filepath.Join(Folder(root, name), "environment.json")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, unknown(root, name)
	}
	if err != nil {
		return nil, fmt.Errorf("read the environment %s: %w", name, err)
	}
	e := &Environment{dir: Folder(root, name)}
	if err := json.Unmarshal(text, e); err != nil {
		return nil, fmt.Errorf("read %s: %w: terraform's output \"environment\" belongs there", path, err)
	}
	if err := e.check(name); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	e.keys, err = keys.Load(KeysFolder(root, name))
	if err != nil {
		return nil, fmt.Errorf("the environment %s: %w", name, err)
	}
	// A machine's certificate that has expired keeps nobody from mending that.
	if err := e.keys.CheckExpiry(time.Now(), "ca", keys.OperatorName); err != nil {
		return nil, fmt.Errorf("the environment %s: %w", name, err)
	}
	return e, nil
}

func unknown(root, name string) error {
	names, err := Names(root)
	if err != nil {
		return err
	}
	there := "there is none yet"
	if len(names) > 0 {
		there = "there are: " + strings.Join(names, ", ")
	}
	return fmt.Errorf("%w: %s (%s): make vms makes local; for others save terraform's output \"environment\" as %s",
		ErrUnknown, name, there, filepath.Join(Folder(root, name), "environment.json"))
}

func (e *Environment) check(name string) error {
	if e.Name != name {
		return fmt.Errorf("it is about the environment %q", e.Name)
	}
	for field, address := range map[string]string{"nomad_addr": e.NomadAddr, "consul_addr": e.ConsulAddr} {
		u, err := url.Parse(address)
		if err != nil || u.Scheme != "https" || u.Host == "" {
			return fmt.Errorf("%s is %q: want https://<address>:<port>", field, address)
		}
	}
	if len(e.Servers) == 0 {
		return errors.New("servers is empty: want the servers' addresses")
	}
	for field, addresses := range map[string][]string{"servers": e.Servers, "edge": e.Edge} {
		for _, address := range addresses {
			if net.ParseIP(address) == nil {
				return fmt.Errorf("%s has %q, which is no address", field, address)
			}
		}
	}
	return nil
}

// Save writes what Load reads, but for the keys.
func (e *Environment) Save(root string) error {
	if err := ValidName(e.Name); err != nil {
		return err
	}
	if err := e.check(e.Name); err != nil {
		return fmt.Errorf("the environment %s: %w", e.Name, err)
	}
	text, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return err
	}
	folder := Folder(root, e.Name)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return fmt.Errorf("make the folder of the environment %s: %w", e.Name, err)
	}
	path := filepath.Join(folder, "environment.json")
	if err := files.Replace(path, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("save the environment %s: %w", e.Name, err)
	}
	e.dir = folder
	return nil
}

// New is an environment that no file describes.
func New(e Environment, k *keys.Keys) *Environment {
	e.keys = k
	e.dir = filepath.Dir(k.Dir)
	if e.CAFile == "" {
		e.CAFile = k.CAFile()
	}
	return &e
}

// Dir is the environment's folder.
func (e *Environment) Dir() string { return e.dir }

// Keys are the keys to it.
func (e *Environment) Keys() *keys.Keys { return e.keys }

// Consul is a client with the operator's token, which may do everything.
func (e *Environment) Consul() (*consulapi.Client, error) {
	transport, err := e.transport(keys.ConsulServerName)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(e.ConsulAddr)
	if err != nil {
		return nil, fmt.Errorf("the address of Consul: %w", err)
	}
	// An HTTP client of our own keeps TLS settings in the environment, which are
	// for other clusters, out.
	client, err := consulapi.NewClient(&consulapi.Config{
		Address: u.Host, Scheme: "https", Token: e.keys.Secrets.ConsulManagement, HttpClient: &http.Client{Transport: transport},
	})
	if err != nil {
		return nil, fmt.Errorf("make a client of Consul: %w", err)
	}
	return client, nil
}

// Nomad is a client with the operator's token, which may do everything.
func (e *Environment) Nomad() (*nomadapi.Client, error) {
	transport, err := e.transport(keys.NomadServerName)
	if err != nil {
		return nil, err
	}
	client, err := nomadapi.NewClient(&nomadapi.Config{
		Address: e.NomadAddr, SecretID: e.keys.Secrets.NomadManagement, HttpClient: &http.Client{Transport: transport},
	})
	if err != nil {
		return nil, fmt.Errorf("make a client of Nomad: %w", err)
	}
	return client, nil
}

// transport calls servers that prove a name, whatever their address.
func (e *Environment) transport(serverName string) (*http.Transport, error) {
	config, err := e.keys.OperatorTLS(serverName)
	if err != nil {
		return nil, err
	}
	config.MinVersion = tls.VersionTLS12 // what the agents offer at least
	return &http.Transport{
		DialContext: e.Dial, TLSClientConfig: config, TLSHandshakeTimeout: 10 * time.Second,
		MaxIdleConnsPerHost: 16, IdleConnTimeout: 30 * time.Second,
	}, nil
}

// Env are the variables with which nomad, consul and our own programs reach the
// environment as its operator.
func (e *Environment) Env() []Var {
	return []Var{
		{"CONSUL_CACERT", e.keys.CAFile()},
		{"CONSUL_HTTP_ADDR", e.ConsulAddr},
		{"CONSUL_HTTP_TOKEN", e.keys.Secrets.ConsulManagement},
		{"CONSUL_TLS_SERVER_NAME", keys.ConsulServerName},
		{"MARQUEE_ENVIRONMENT", e.Name},
		{"NOMAD_ADDR", e.NomadAddr},
		{"NOMAD_CACERT", e.keys.CAFile()},
		{"NOMAD_TLS_SERVER_NAME", keys.NomadServerName},
		{"NOMAD_TOKEN", e.keys.Secrets.NomadManagement},
	}
}

// Artifacts uploads to the environment's servers.
func (e *Environment) Artifacts() (*artifacts.Uploader, error) {
	config, err := e.keys.OperatorTLS(keys.ConsulServerName)
	if err != nil {
		return nil, err
	}
	servers := make([]string, len(e.Servers))
	for i, address := range e.Servers {
		servers[i] = net.JoinHostPort(address, artifactsPort)
	}
	return artifacts.NewUploader(servers, config, e.Dial), nil
}

// Dial connects to an address of the environment, in the network of its box if
// it has one. An ordinary user's box can only be entered as a whole: then the
// error says how.
func (e *Environment) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	if e.Box == "" || box.Inside(e.Box) {
		return dialer.DialContext(ctx, network, address)
	}
	return dialInBox(ctx, e.Box, dialer, network, address)
}
