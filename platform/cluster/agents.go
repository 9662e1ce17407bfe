package cluster

import (
	"bytes"
	_ "embed"
	"path/filepath"
	"strconv"
	"text/template"
)

// The agents' names, as in Status and Logs.
const (
	consulName      = "consul"
	nomadServerName = "nomad-server"
	nomadClientName = "nomad-client"
)

var (
	//go:embed consul.hcl.tmpl
	consulTemplate string
	//go:embed nomad-server.hcl.tmpl
	nomadServerTemplate string
	//go:embed nomad-client.hcl.tmpl
	nomadClientTemplate string
	//go:embed nomad-consul.hcl.tmpl
	nomadConsulTemplate string
)

// settings is what the templates see.
type settings struct {
	Name      string
	Dir       string
	Interface string
	CNIPath   string
	Ports     map[string]int
	Secrets   secrets
}

func (c *Cluster) settings() settings {
	return settings{
		Name: c.cfg.Name, Dir: c.cfg.Dir, Interface: c.cfg.Interface, CNIPath: c.cfg.CNIPath, Secrets: c.secrets,
		Ports: map[string]int{
			"consul_http": c.port(portConsulHTTP), "consul_grpc": c.port(portConsulGRPC),
			"consul_serf_lan": c.port(portConsulSerfLAN), "consul_serf_wan": c.port(portConsulSerfWAN),
			"consul_server": c.port(portConsulServer),
			"nomad_http":    c.port(portNomadHTTP), "nomad_rpc": c.port(portNomadRPC), "nomad_serf": c.port(portNomadSerf),
			"nomad_client": c.port(portNomadClient), "first": c.port(portDynamicFirst), "last": c.port(portDynamicLast),
		},
	}
}

// render fills a template in. Values are quoted with quote, which HCL reads as
// Go writes it but for template markers.
func (c *Cluster) render(text string) func() ([]byte, error) {
	return func() ([]byte, error) {
		t, err := template.New("").Option("missingkey=error").Funcs(template.FuncMap{"quote": quote}).Parse(text)
		if err != nil {
			return nil, err
		}
		if _, err := t.New("consul").Parse(nomadConsulTemplate); err != nil {
			return nil, err
		}
		var out bytes.Buffer
		if err := t.Execute(&out, c.settings()); err != nil {
			return nil, err
		}
		return out.Bytes(), nil
	}
}

// quote writes an HCL string in which ${ and %{ stand for themselves. The agents
// read the first version of HCL, and take every byte of a path as it is.
func quote(s string) string {
	q := []byte(strconv.Quote(s))
	q = bytes.ReplaceAll(q, []byte("${"), []byte("$${"))
	return string(bytes.ReplaceAll(q, []byte("%{"), []byte("%%{")))
}

func (c *Cluster) consulAgent(program string) agent {
	return agent{
		name: consulName, program: program, flag: "-config-file=", config: c.path("config", "consul.hcl"),
		text: c.render(consulTemplate), address: c.addr(portConsulHTTP),
		ports: []agentPort{
			{portConsulHTTP, false, "Consul's HTTP API"},
			{portConsulGRPC, false, "Consul's gRPC API"},
			{portConsulSerfLAN, true, "Consul's gossip"},
			{portConsulSerfWAN, true, "Consul's gossip between datacenters"},
			{portConsulServer, false, "Consul's server"},
		},
	}
}

func (c *Cluster) nomadServer(program string) agent {
	return agent{
		name: nomadServerName, program: program, flag: "-config=", config: c.path("config", "nomad-server.hcl"),
		text: c.render(nomadServerTemplate), address: c.addr(portNomadHTTP),
		ports: []agentPort{
			{portNomadHTTP, false, "Nomad's HTTP API"}, {portNomadRPC, false, "Nomad's RPC"}, {portNomadSerf, true, "Nomad's gossip"},
		},
	}
}

// nomadClient runs consul itself for sidecars in bridge mode.
func (c *Cluster) nomadClient(program, consulFolder string) agent {
	return agent{
		name: nomadClientName, program: program, flag: "-config=", config: c.path("config", "nomad-client.hcl"),
		text: c.render(nomadClientTemplate), address: c.addr(portNomadClient), path: []string{filepath.Clean(consulFolder)},
		ports: []agentPort{{portNomadClient, false, "the HTTP API of Nomad's client"}},
	}
}
