// Package cluster runs one Consul and one Nomad on this machine's loopback
// address, as `marquee up` and the end-to-end tests use them: ACLs on, default
// deny, gossip encrypted, data in a folder of its own.
//
// Nomad is two processes, a server and a client. In one process the client
// registers before the server's keys are loaded, is refused, and tries again
// only after 15 to 30 s (Nomad 1.11); started after the server serves its
// public keys it is ready in under a second.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/marquee-ads/marquee/platform/bootstrap"
	"github.com/marquee-ads/marquee/platform/edges"
	"github.com/marquee-ads/marquee/platform/meshconfig"
	"github.com/marquee-ads/marquee/platform/tools"
)

// Config says which cluster is meant.
type Config struct {
	// Dir holds everything of the cluster: configuration, data, logs, secrets,
	// volumes. Usually .marquee/clusters/<Name>; see Folder.
	Dir string
	// Name is the nodes' name. Empty is the last element of Dir.
	Name string
	// PortBase is the first of the cluster's 1000 ports when it starts for the
	// first time; later starts use the same again. 0 is the first free block.
	PortBase int
	// Interface is the network interface whose address Nomad gives to jobs that
	// do not ask for the host network "loopback". Empty is "lo".
	Interface string
	// CNIPath is the folder of CNI plugins for jobs in bridge mode, "" for none.
	CNIPath string
	// StopTimeout bounds how long Down waits for jobs to stop by themselves.
	// It must be longer than their longest kill_timeout. 0 is 90 s.
	StopTimeout time.Duration
	// Progress is told what is being done, a line at a time, never concurrently.
	// Nil is silent.
	Progress func(line string)
}

// EnvVar is one environment variable.
type EnvVar struct{ Name, Value string }

// Cluster is a handle on a folder. Its methods may be called by several
// processes at once: Up and Down lock the folder.
type Cluster struct {
	cfg     Config
	state   state
	secrets secrets
	http    *http.Client
	report  sync.Mutex

	mu      sync.Mutex
	claim   net.Listener               // holds the port block until the agents do
	exited  map[string]<-chan struct{} // agents that this process started and reaps
	watched map[string]process         // agents as they were found or started
}

// Folder is where a checkout keeps the cluster of a name.
func Folder(root, name string) string {
	return filepath.Join(root, ".marquee", "clusters", name)
}

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)

// CheckName says why a name is none for a cluster of a checkout: it names a
// folder, which Wipe removes.
func CheckName(name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("%q is no name for a cluster: want lower-case letters, digits and hyphens, at most 32 of them and no hyphen first", name)
	}
	return nil
}

// maxDir keeps the sockets of Nomad's plugins, tmp/plugin<10 digits>, within the
// 107 bytes that the kernel takes for the path of a Unix socket.
const maxDir = 107 - len("/tmp/plugin") - 10

// Open reads a cluster's folder and starts nothing. A folder that does not
// exist yet is a cluster that was never up.
func Open(cfg Config) (*Cluster, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open the cluster %s: %w", cfg.Dir, err)
	}
	// Processes are recognised by paths as the kernel shows them, which must be
	// the same before the folder is there and after.
	dir = resolve(dir)
	cfg.Dir = dir
	if len(dir) > maxDir {
		return nil, fmt.Errorf("the cluster's folder %s has a path of %d characters: Unix sockets below it allow at most %d: move the checkout to a shorter path", dir, len(dir), maxDir)
	}
	if cfg.Name == "" {
		cfg.Name = filepath.Base(dir)
	}
	if cfg.Interface == "" {
		cfg.Interface = "lo"
	}
	if cfg.StopTimeout == 0 {
		cfg.StopTimeout = 90 * time.Second
	}
	c := &Cluster{
		cfg: cfg, exited: map[string]<-chan struct{}{}, watched: map[string]process{},
		// No proxy: everything is on this machine.
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16, IdleConnTimeout: 30 * time.Second}},
	}
	return c, c.load()
}

// resolve follows the symbolic links in the part of a path that exists.
func resolve(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil || path == filepath.Dir(path) {
		return real
	}
	return filepath.Join(resolve(filepath.Dir(path)), filepath.Base(path))
}

// Up brings the cluster to where both agents answer, ACLs and workload
// identities are set up and the node takes jobs. It changes nothing that is
// there already, so that it continues what was started by halves. When ctx ends
// or an error comes back, what runs keeps running: call Up again or Down.
func (c *Cluster) Up(ctx context.Context) error {
	nomad, consul, err := c.findTools(ctx)
	if err != nil {
		return err
	}
	lock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	// Another process may have brought it up in the meantime.
	if err := c.load(); err != nil {
		return err
	}
	defer c.unclaim()
	if err := c.prepare(ctx); err != nil {
		return err
	}

	c.say("starting Consul and Nomad")
	started := 0
	for _, a := range []agent{c.consulAgent(consul), c.nomadServer(nomad)} {
		did, err := c.ensureRunning(ctx, a)
		if err != nil {
			return err
		}
		if did {
			started++
		}
	}
	c.say("waiting for Consul")
	if err := c.waitForConsul(ctx); err != nil {
		return err
	}
	if err := c.consulACL(ctx); err != nil {
		return err
	}
	c.say("waiting for Nomad")
	if err := c.waitForNomadKeys(ctx); err != nil {
		return err
	}
	if err := c.nomadACL(ctx); err != nil {
		return err
	}
	if err := bootstrap.Trust(ctx, c.Consul(), c.keysURL(), ""); err != nil {
		return err
	}
	did, err := c.ensureRunning(ctx, c.nomadClient(nomad, filepath.Dir(consul)))
	if err != nil {
		return err
	}
	if did {
		started++
	}
	c.say("waiting for Nomad's client")
	if err := c.waitForNode(ctx); err != nil {
		return err
	}
	if started == 0 {
		c.say("Consul and Nomad were running already")
	} else {
		c.say("Consul and Nomad are ready")
	}
	return nil
}

func (c *Cluster) findTools(ctx context.Context) (nomad, consul string, err error) {
	c.say("looking for Nomad and Consul")
	if consul, err = tools.Ensure(ctx, tools.Consul, c.say); err != nil {
		return "", "", err
	}
	if nomad, err = tools.Ensure(ctx, tools.Nomad, c.say); err != nil {
		return "", "", err
	}
	c.say("Nomad and Consul are there")
	return nomad, consul, nil
}

// Down stops the jobs, then the agents, then whatever else of the cluster still
// runs, and unmounts what is mounted below its folder. Data, volumes, secrets and
// logs stay. It works on a half-started cluster and on one whose agents died.
func (c *Cluster) Down(ctx context.Context) error {
	return c.locked(ctx, c.down)
}

// Wipe is Down, and removes the folder with all data.
func (c *Cluster) Wipe(ctx context.Context) error {
	return c.locked(ctx, func(ctx context.Context) error {
		if err := c.down(ctx); err != nil {
			return err
		}
		if err := os.RemoveAll(c.cfg.Dir); err != nil {
			return fmt.Errorf("remove the cluster's folder: %w", err)
		}
		c.state, c.secrets = state{}, secrets{}
		return nil
	})
}

// locked does something to a folder that is there, and nobody else does meanwhile.
func (c *Cluster) locked(ctx context.Context, do func(context.Context) error) error {
	if _, err := os.Stat(c.cfg.Dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	lock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	return do(ctx)
}

// Status is what runs of a cluster.
type Status struct {
	Name     string        `json:"name"`
	Dir      string        `json:"dir"`
	PortBase int           `json:"port_base"` // 0 when it was never up
	Agents   []AgentStatus `json:"agents"`
	// Ready says that all agents answer and the node takes jobs. Problem says
	// why not.
	Ready   bool   `json:"ready"`
	Problem string `json:"problem,omitempty"`
}

// AgentStatus is one agent's process.
type AgentStatus struct {
	Name    string `json:"name"`    // consul, nomad-server or nomad-client
	PID     int    `json:"pid"`     // 0 when it does not run
	Address string `json:"address"` // of its HTTP API, host:port; empty when it was never up
	Log     string `json:"log"`     // path of its log
}

// Status looks; it changes nothing. An error means that looking failed.
func (c *Cluster) Status(ctx context.Context) (Status, error) {
	s := Status{Name: c.cfg.Name, Dir: c.cfg.Dir, PortBase: c.state.PortBase}
	var missing []string
	for _, a := range []agent{c.consulAgent(""), c.nomadServer(""), c.nomadClient("", "")} {
		found, err := c.running(a)
		if err != nil {
			return Status{}, err
		}
		status := AgentStatus{Name: a.name, Log: c.logPath(a.name)}
		if s.PortBase != 0 {
			status.Address = a.address
		}
		if found != nil {
			status.PID = found.pid
		} else {
			missing = append(missing, a.name)
		}
		s.Agents = append(s.Agents, status)
	}
	if len(missing) > 0 {
		s.Problem = strings.Join(missing, ", ") + " not running"
		return s, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, check := range []func(context.Context) error{c.consulAnswers, c.nomadAnswers, c.nodeReady} {
		if err := check(ctx); err != nil {
			s.Problem = err.Error()
			return s, nil
		}
	}
	s.Ready = true
	return s, nil
}

// Name is the cluster's name.
func (c *Cluster) Name() string { return c.cfg.Name }

// Dir is the cluster's folder.
func (c *Cluster) Dir() string { return c.cfg.Dir }

// Volumes is the folder for data that outlives allocations. Everyone may pass
// through it: what lies below sets its own rights.
func (c *Cluster) Volumes() string { return filepath.Join(c.cfg.Dir, "volumes") }

// Logs are the agents' log files by agent.
func (c *Cluster) Logs() map[string]string {
	return map[string]string{
		consulName: c.logPath(consulName), nomadServerName: c.logPath(nomadServerName), nomadClientName: c.logPath(nomadClientName),
	}
}

// Consul is a client with the operator's token, which may do everything. The
// cluster must have been up once.
func (c *Cluster) Consul() *consulapi.Client {
	return c.consulClient(c.secrets.ConsulManagement)
}

func (c *Cluster) consulClient(token string) *consulapi.Client {
	// Setting the HTTP client keeps TLS settings in the environment, which are
	// for other clusters, out; nothing else about a plain address can fail.
	client, _ := consulapi.NewClient(&consulapi.Config{
		Address: c.addr(portConsulHTTP), Scheme: "http", Token: token, HttpClient: c.http,
	})
	return client
}

// Nomad is a client with the operator's token, which may do everything. The
// cluster must have been up once.
func (c *Cluster) Nomad() *nomadapi.Client { return c.nomadAt(portNomadHTTP) }

func (c *Cluster) nomadAt(port int) *nomadapi.Client {
	// Nothing about a plain address can fail.
	client, _ := nomadapi.NewClient(&nomadapi.Config{
		Address: "http://" + c.addr(port), SecretID: c.secrets.NomadManagement, HttpClient: c.http,
	})
	return client
}

// Apply makes Consul's view of the mesh what the edges say; see meshconfig.Apply.
func (c *Cluster) Apply(ctx context.Context, e edges.Edges) error {
	return meshconfig.Apply(ctx, c.Consul(), e)
}

// SetEdge lets source call destination, or no longer; see meshconfig.SetEdge.
func (c *Cluster) SetEdge(ctx context.Context, source, destination string, allow bool) error {
	return meshconfig.SetEdge(ctx, c.Consul(), source, destination, allow)
}

// Env are the variables with which nomad, consul and our own programs reach the
// cluster as its operator. Empty when it was never up.
func (c *Cluster) Env() []EnvVar {
	if c.state.PortBase == 0 {
		return nil
	}
	return []EnvVar{
		{"CONSUL_HTTP_ADDR", "http://" + c.addr(portConsulHTTP)},
		{"CONSUL_HTTP_TOKEN", c.secrets.ConsulManagement},
		{"MARQUEE_CLUSTER", c.cfg.Name},
		{"NOMAD_ADDR", "http://" + c.addr(portNomadHTTP)},
		{"NOMAD_TOKEN", c.secrets.NomadManagement},
	}
}

func (c *Cluster) say(line string) {
	if c.cfg.Progress == nil {
		return
	}
	c.report.Lock()
	defer c.report.Unlock()
	c.cfg.Progress(line)
}
