package service

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Run modes: what a process is for, which sets defaults and how strict the
// configuration is.
const (
	Development = "development"
	Test        = "test"
	Production  = "production"
)

// Ways into the mesh.
const (
	MeshNative    = "native"
	MeshSidecar   = "sidecar"
	MeshPlaintext = "plaintext"
)

// developmentSecret starts every secret that is made for development and so
// known to others; production refuses it.
const developmentSecret = "development-"

// Config is what every service is configured with. A service embeds it in a
// struct of its own, whose further fields follow the same rules: kong tags
// give each a flag, an environment variable (MARQUEE_ and the flag's name) and
// a key in the file (the flag's name with underscores).
type Config struct {
	Name        string `default:"${name}" help:"Consul service name; also the mesh identity."`
	Environment string `default:"development" help:"Keeps environments apart: only instances of the same one are found, and tokens are only good for it."`
	Mode        string `default:"development" enum:"development,test,production" help:"Run mode (development, test, production). Development and test: text logs, profiles served. Production: JSON logs, strict configuration."`

	Listen    string `default:"127.0.0.1:0" help:"Address of the mesh port (gRPC). Port 0 takes a free one."`
	Advertise string `placeholder:"ADDRESS" help:"Address under which others reach the mesh port, host or host:port. Default: the listen address, or the source address of the route to Consul when that is unspecified."`
	Register  string `default:"auto" enum:"auto,always,never" help:"Register in Consul: auto (unless under Nomad, whose job registers, or in plaintext), always, never."`

	AdminListen string `default:"127.0.0.1:0" help:"Address of the admin port: /healthz, /readyz, /metrics, /version, /log-level, gRPC health. Unencrypted, so keep it on loopback."`
	AdminPprof  bool   `help:"Serve /debug/pprof on the admin port in production as well."`

	Mesh            string `default:"native" enum:"native,sidecar,plaintext" help:"How the mesh is spoken: native (mutual TLS in this process), sidecar (an Envoy beside it), plaintext (loopback only, for tests)."`
	ConsulAddr      string `placeholder:"ADDRESS" help:"Consul agent's HTTP API; several with commas: the next one is used when one does not answer. Default: CONSUL_HTTP_ADDR, else 127.0.0.1:8500."`
	ConsulTokenFile string `placeholder:"FILE" type:"path" help:"File with the Consul ACL token. Default: CONSUL_HTTP_TOKEN."`

	LogLevel  string `default:"" enum:",trace,debug,info,warn,error" placeholder:"LEVEL" help:"trace, debug, info, warn or error; can be changed while running (PUT /log-level). Default: info."`
	LogFormat string `default:"" enum:",text,json" placeholder:"FORMAT" help:"text or json. Default: text, in production json."`

	DrainDelay   time.Duration `default:"2s" help:"On shutdown: how long callers get to notice that the instance left, before it refuses new calls. 0s where Nomad's shutdown_delay waits already."`
	DrainTimeout time.Duration `default:"10s" help:"On shutdown: how long calls in flight may take to finish before they are cut."`

	MaxInFlight int `default:"1000" placeholder:"CALLS" help:"Unary calls under way at once; more are refused at once, with when to try again, so that those under way keep their speed. Health checks are always answered. 0: no limit."`

	TracingEndpoint string `placeholder:"HOST:PORT" help:"host:port of an OTLP gRPC collector; TLS unless it is on loopback. Empty: no tracing."`

	// Upstreams are addresses of services by name, for tests that speak
	// plaintext and have no Consul.
	Upstreams map[string][]string `kong:"-"`
	// OnListening, when set, is called once with the addresses in use as soon
	// as the service accepts connections: tests run a service on port 0.
	OnListening func(Addresses) `kong:"-"`
	// LogOutput is where logs go; nil is standard error.
	LogOutput *os.File `kong:"-"`
}

// Addresses are what a running service listens on, as host:port. Mesh is empty
// for a service without a gRPC server.
type Addresses struct {
	Mesh  string
	Admin string
}

// Common returns the part that all services share; embedding promotes it.
func (c *Config) Common() *Config { return c }

var (
	namePattern        = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`)
	environmentPattern = regexp.MustCompile(`^[a-z][a-z0-9-]{0,30}$`)
)

// Validate reports everything that is wrong, each with the flag and the fix. A
// service with a Validate of its own calls this one first.
func (c *Config) Validate() error {
	var problems []error
	wrong := func(flag, format string, args ...any) {
		problems = append(problems, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	if !namePattern.MatchString(c.Name) {
		wrong("name", "%q is not a service name; use lower-case letters, digits and hyphens, starting with a letter", c.Name)
	}
	if !environmentPattern.MatchString(c.Environment) {
		wrong("environment", "%q is not an environment; use 1 to 31 lower-case letters, digits and hyphens, starting with a letter", c.Environment)
	}
	for _, a := range []struct{ flag, address string }{{"listen", c.Listen}, {"admin-listen", c.AdminListen}} {
		if _, _, err := net.SplitHostPort(a.address); err != nil {
			wrong(a.flag, "%q is not an address; use host:port, for example 127.0.0.1:0", a.address)
		}
	}
	if slices.Contains(c.consulAddresses(), "") {
		wrong("consul-addr", "%q names an agent without an address; use for example 127.0.0.1:8500,10.0.0.5:8500", c.ConsulAddr)
	}
	if c.DrainDelay < 0 {
		wrong("drain-delay", "%s is negative; use 0s or more", c.DrainDelay)
	}
	if c.DrainTimeout <= 0 {
		wrong("drain-timeout", "%s leaves calls in flight no time; use for example 10s", c.DrainTimeout)
	}
	if c.MaxInFlight < 0 {
		wrong("max-in-flight", "%d is negative; use for example 1000, or 0 for no limit", c.MaxInFlight)
	}
	if c.LogLevel != "" && hclog.LevelFromString(c.LogLevel) == hclog.NoLevel {
		wrong("log-level", "%q is not a level; use trace, debug, info, warn or error", c.LogLevel)
	}
	if c.Mesh == MeshPlaintext && !loopback(c.Listen) {
		wrong("listen", "%s is not on loopback, and --mesh=plaintext encrypts nothing; listen on 127.0.0.1, or use --mesh=native", c.Listen)
	}
	if c.TracingEndpoint != "" {
		if _, _, err := net.SplitHostPort(c.TracingEndpoint); err != nil {
			wrong("tracing-endpoint", "%q is not an address; use host:port, for example 127.0.0.1:4317", c.TracingEndpoint)
		}
	}
	if c.Mode == Production {
		c.validateProduction(wrong)
	}
	return errors.Join(problems...)
}

func (c *Config) validateProduction(wrong func(flag, format string, args ...any)) {
	if c.Environment == "" || c.Environment == Development {
		wrong("environment", "%q is not for production; name the environment, for example production-eu", c.Environment)
	}
	switch c.Mesh {
	case MeshPlaintext:
		wrong("mesh", "plaintext is not for production; use native or sidecar")
	case MeshSidecar:
		if !loopback(c.Listen) {
			wrong("listen", "%s is not on loopback: behind a sidecar this port is unencrypted; listen on 127.0.0.1, where Envoy reaches it", c.Listen)
		}
	}
	if !loopback(c.AdminListen) {
		wrong("admin-listen", "%s is not on loopback, and the admin port is unencrypted; listen on 127.0.0.1", c.AdminListen)
	}
	for _, address := range c.consulAddresses() {
		if !consulEncrypted(address) {
			wrong("consul-addr", "%s is neither on loopback nor https; use the agent on this machine, or https://", address)
		}
	}
	if token := os.Getenv("CONSUL_HTTP_TOKEN"); c.ConsulTokenFile == "" && strings.HasPrefix(token, developmentSecret) {
		wrong("consul-token-file", "CONSUL_HTTP_TOKEN is a development secret; make a token for production")
	}
	if c.ConsulTokenFile != "" {
		if _, err := c.Secret("consul-token-file", c.ConsulTokenFile); err != nil {
			wrong("consul-token-file", "%s", strings.TrimPrefix(err.Error(), "--consul-token-file: "))
		}
	}
}

// Secret reads a secret from the file that a flag names, without the line's
// end. It refuses a missing, empty or oversized (64 KiB) file, and in
// production a file that every user can read and a secret made for development.
// Errors name the flag and the fix, never the secret.
func (c *Config) Secret(flag, path string) (string, error) {
	if path == "" {
		return "", fmt.Errorf("--%s: is needed; name the file that holds the secret", flag)
	}
	info, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("--%s: %w; name a file that this process can read", flag, err)
	}
	if info.Size() > 64<<10 {
		return "", fmt.Errorf("--%s: %s has %d bytes; a secret has at most 65536", flag, path, info.Size())
	}
	if c.Mode == Production && info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0 {
		return "", fmt.Errorf("--%s: every user can read %s; chmod 0400 it", flag, path)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("--%s: %w; name a file that this process can read", flag, err)
	}
	secret := string(bytes.TrimRight(content, "\r\n"))
	switch {
	case secret == "":
		return "", fmt.Errorf("--%s: %s is empty; write the secret into it", flag, path)
	case c.Mode == Production && strings.HasPrefix(secret, developmentSecret):
		return "", fmt.Errorf("--%s: %s holds a development secret; make one for production", flag, path)
	}
	return secret, nil
}

// consulAddresses are the agents, the one to begin with first; never empty.
func (c *Config) consulAddresses() []string {
	for _, list := range []string{c.ConsulAddr, os.Getenv("CONSUL_HTTP_ADDR")} {
		if list != "" {
			return strings.Split(list, ",")
		}
	}
	return []string{"127.0.0.1:8500"}
}

func consulEncrypted(address string) bool {
	if strings.HasPrefix(address, "https://") || strings.HasPrefix(address, "unix://") {
		return true
	}
	if os.Getenv("CONSUL_HTTP_SSL") == "true" && !strings.HasPrefix(address, "http://") {
		return true
	}
	return loopback(strings.TrimPrefix(address, "http://"))
}

// loopback says whether an address of the form host:port is only reachable
// from this machine. An empty host is every address.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

func (c *Config) underNomad() bool { return os.Getenv("NOMAD_ALLOC_ID") != "" }

// registers says whether the process puts itself into Consul.
func (c *Config) registers() bool {
	switch c.Register {
	case "always":
		return true
	case "never":
		return false
	default:
		return !c.underNomad() && c.Mesh != MeshPlaintext
	}
}
