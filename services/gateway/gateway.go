// Package gateway is the only door of the platform for people and programs:
// REST/JSON and native gRPC to every service in the registry, none of which it
// knows beforehand.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/services/gateway/backend"
	"github.com/marquee-ads/marquee/services/gateway/catalog"
	"github.com/marquee-ads/marquee/services/gateway/connections"
	"github.com/marquee-ads/marquee/services/gateway/deadline"
	"github.com/marquee-ads/marquee/services/gateway/devices"
	"github.com/marquee-ads/marquee/services/gateway/overload"
	"github.com/marquee-ads/marquee/services/gateway/proxy"
	"github.com/marquee-ads/marquee/services/gateway/rest"
)

// Config is what is configured of the gateway itself, beside what every service
// has.
type Config struct {
	HTTPListen string `default:"127.0.0.1:0" name:"http-listen" help:"Address of the door for REST/JSON (HTTP/1.1 and HTTP/2)."`
	GRPCListen string `default:"127.0.0.1:0" name:"grpc-listen" help:"Address of the door for native gRPC."`

	DeviceListen  string `default:"" name:"device-listen" help:"Address of the door for displays, whose bytes are passed on to the device service as they are; displays get TLS there. Empty: there is no such door."`
	DeviceService string `default:"device" help:"Consul service that displays are passed on to, at the port that its instances register as players."`

	TLSCertFile string `type:"path" name:"tls-cert-file" help:"Certificate chain (PEM) of both doors. Empty: plaintext, behind a load balancer that has it."`
	TLSKeyFile  string `type:"path" name:"tls-key-file" help:"Private key (PEM) that belongs to the certificate."`
	BehindTLS   bool   `name:"behind-tls" help:"Production: a load balancer in front ends TLS, so that the doors may be plaintext outside loopback."`

	ServedBy  bool   `default:"true" negatable:"" help:"Tell callers in x-served-by which instance answered."`
	AccessLog string `default:"failures" enum:"failures,all" help:"Requests that are logged: failures (those that were not the caller's fault) or all."`

	MaxConnections           int `default:"10000" help:"Connections that clients may have open, at both doors together; more are refused. Each takes a file descriptor and 20 to 40 KiB. Twice as many calls may wait for their requests to arrive. 0: as many as the limit of open files allows."`
	MaxConnectionsPerAddress int `default:"1000" help:"Of these, connections from one address (for IPv6, one /64). Not applied with --behind-tls, where all come from the load balancer; behind one that passes TCP on, set it to 0, no limit."`

	MediaService string `default:"" help:"Consul service that has what is below /v1/media/, at the port that its instances register as media. Empty: there is nothing."`

	MaxDevices int `default:"10000" help:"Displays that may be connected at the door for them; more are refused. Each takes two file descriptors and about 40 KiB."`

	MaxDevicesPerAddress int `default:"5000" help:"Of these, displays from one address (for IPv6, one /64): many may be behind one, a venue's or a mobile operator's. 0: no limit."`

	MaxBodyBytes    int64 `default:"1048576" help:"Largest body of a REST request, in bytes."`
	MaxMessageBytes int   `default:"4194304" help:"Largest gRPC message in either direction, in bytes."`

	BodyTimeout    time.Duration `default:"10s" help:"How long a REST request's body may take to arrive."`
	DefaultTimeout time.Duration `default:"15s" help:"Deadline of unary calls whose caller sets none."`
	MaxTimeout     time.Duration `default:"1m" help:"Longest deadline of a unary call, whatever its caller asks for."`
	StreamTimeout  time.Duration `default:"1h" help:"Longest time a stream may last; its caller opens it again."`
}

// Validate reports everything that is wrong, each with the flag and the fix.
func (c Config) Validate() error {
	var problems []error
	wrong := func(flag, format string, args ...any) {
		problems = append(problems, fmt.Errorf("--%s: %s", flag, fmt.Sprintf(format, args...)))
	}
	for _, a := range []struct{ flag, address string }{{"http-listen", c.HTTPListen}, {"grpc-listen", c.GRPCListen}} {
		if _, _, err := net.SplitHostPort(a.address); err != nil {
			wrong(a.flag, "%q is not an address; use host:port, for example 127.0.0.1:8080", a.address)
		}
	}
	if _, _, err := net.SplitHostPort(c.DeviceListen); err != nil && c.DeviceListen != "" {
		wrong("device-listen", "%q is not an address; use host:port, for example 127.0.0.1:1883, or nothing", c.DeviceListen)
	}
	if (c.TLSCertFile == "") != (c.TLSKeyFile == "") {
		wrong("tls-cert-file", "certificate and key belong together; set --tls-cert-file and --tls-key-file, or neither")
	}
	for _, n := range []struct {
		flag  string
		value int
	}{{"max-connections", c.MaxConnections}, {"max-connections-per-address", c.MaxConnectionsPerAddress}, {"max-devices", c.MaxDevices}, {"max-devices-per-address", c.MaxDevicesPerAddress}} {
		if n.value < 0 {
			wrong(n.flag, "%d is not a number of connections; use 0 for no limit", n.value)
		}
	}
	if c.MaxBodyBytes < 1 || c.MaxBodyBytes > 1<<30 {
		wrong("max-body-bytes", "%d is out of range; use 1 to 1073741824", c.MaxBodyBytes)
	}
	if c.MaxMessageBytes < 1024 || c.MaxMessageBytes > 1<<30 {
		wrong("max-message-bytes", "%d is out of range; use 1024 to 1073741824", c.MaxMessageBytes)
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{
		{"body-timeout", c.BodyTimeout}, {"default-timeout", c.DefaultTimeout},
		{"max-timeout", c.MaxTimeout}, {"stream-timeout", c.StreamTimeout},
	} {
		if d.value <= 0 {
			wrong(d.flag, "%s is not a time that something can take; use for example 10s", d.value)
		}
	}
	if c.DefaultTimeout > c.MaxTimeout {
		wrong("default-timeout", "%s is more than --max-timeout, %s; lower it", c.DefaultTimeout, c.MaxTimeout)
	}
	return errors.Join(problems...)
}

// ValidateProduction reports what is wrong for production on top of Validate:
// doors that everybody may reach speak TLS, or somebody in front of them does.
func (c Config) ValidateProduction() error {
	if c.TLSCertFile != "" || c.BehindTLS {
		return nil
	}
	var problems []error
	for _, a := range []struct{ flag, address string }{{"http-listen", c.HTTPListen}, {"grpc-listen", c.GRPCListen}} {
		host, _, _ := net.SplitHostPort(a.address)
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			problems = append(problems, fmt.Errorf("--%s: %s is not on loopback and unencrypted; set --tls-cert-file and --tls-key-file, or --behind-tls where a load balancer in front ends TLS", a.flag, a.address))
		}
	}
	return errors.Join(problems...)
}

func (c Config) limits() deadline.Limits {
	return deadline.Limits{Default: c.DefaultTimeout, Max: c.MaxTimeout, Stream: c.StreamTimeout}
}

// Surroundings are what the gateway needs of the process it runs in.
type Surroundings struct {
	Registry catalog.Registry
	Dial     backend.Dial
	// DialPort opens connections of bytes; mesh.Mesh.DialPort is one.
	DialPort       func(ctx context.Context, service, port string) (net.Conn, error)
	EnvironmentTag string
	// Plaintext says that Dial reaches instances that speak no mesh TLS.
	Plaintext bool
	Log       hclog.Logger
	Metrics   prometheus.Registerer
	// Admission bounds the calls under way.
	Admission overload.Admission
	// Tracing opens the gateway's spans; nil opens none.
	Tracing trace.TracerProvider
	// Failed is called when a door closes by itself.
	Failed func(error)
}

// Gateway is the catalog with the two doors to what is in it, and the door for
// displays.
type Gateway struct {
	Catalog *catalog.Catalog

	cfg         Config
	failed      func(error)
	connections *connections.Limit
	grpc        *proxy.Door
	http        *rest.Door
	devices     *devices.Door // nil without an address for it

	httpListener, grpcListener, deviceListener net.Listener
}

// New puts the gateway together. Nothing runs yet: the process runs Catalog.Run
// and calls Open.
func New(cfg Config, around Surroundings) (*Gateway, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	chain, err := stages(cfg, around)
	if err != nil {
		return nil, err
	}
	var security *tls.Config
	if cfg.TLSCertFile != "" {
		if security, err = serverTLS(cfg.TLSCertFile, cfg.TLSKeyFile); err != nil {
			return nil, err
		}
	}
	limit, err := connectionLimit(cfg, around)
	if err != nil {
		return nil, err
	}
	var displays *devices.Door
	if cfg.DeviceListen != "" {
		if displays, err = deviceDoor(cfg, around); err != nil {
			return nil, err
		}
	}
	var media func(context.Context) (net.Conn, error)
	if cfg.MediaService != "" {
		media = func(ctx context.Context) (net.Conn, error) { return around.DialPort(ctx, cfg.MediaService, "media") }
	}
	services := catalog.New(catalog.Options{
		Registry:       around.Registry,
		Dial:           around.Dial,
		EnvironmentTag: around.EnvironmentTag,
		Connect:        !around.Plaintext,
		MaxMessage:     cfg.MaxMessageBytes,
		Log:            around.Log.Named("catalog"),
	})
	return &Gateway{
		Catalog:     services,
		cfg:         cfg,
		failed:      around.Failed,
		connections: limit,
		devices:     displays,
		grpc: proxy.New(proxy.Options{
			Catalog: services, Stages: chain, Limits: cfg.limits(),
			MaxMessage: cfg.MaxMessageBytes, ServedBy: cfg.ServedBy, TLS: security,
			Log: around.Log,
		}),
		http: rest.New(rest.Options{
			Catalog: services, Stages: chain, Limits: cfg.limits(),
			MaxBody: cfg.MaxBodyBytes, BodyTimeout: cfg.BodyTimeout, ServedBy: cfg.ServedBy, TLS: security,
			Media: media, Log: around.Log,
		}),
	}, nil
}

// connectionLimit is what is configured, as far as the process may have so many
// files open.
func connectionLimit(cfg Config, around Surroundings) (*connections.Limit, error) {
	total, perAddress := cfg.MaxConnections, cfg.MaxConnectionsPerAddress
	if files, known := connections.Files(); known && (total == 0 || total > files) {
		if total > 0 {
			around.Log.Warn("fewer connections than --max-connections are let in: raise the limit of open files", "connections", files)
		}
		total = files
	}
	if cfg.BehindTLS {
		perAddress = 0
	}
	return connections.New("marquee_gateway_connections", "max-connections", total, perAddress, around.Metrics)
}

// deviceDoor may take half of the files that the process may have open: a display
// takes two.
func deviceDoor(cfg Config, around Surroundings) (*devices.Door, error) {
	total := cfg.MaxDevices
	if files, known := connections.Files(); known && (total == 0 || total > files/4) {
		if total > 0 {
			around.Log.Warn("fewer displays than --max-devices are let in: raise the limit of open files", "displays", files/4)
		}
		total = files / 4
	}
	limit, err := connections.New("marquee_gateway_devices", "max-devices", total, cfg.MaxDevicesPerAddress, around.Metrics)
	if err != nil {
		return nil, err
	}
	return devices.New(limit, func(ctx context.Context) (net.Conn, error) {
		return around.DialPort(ctx, cfg.DeviceService, "players")
	}, around.Log.Named("devices")), nil
}

// Open opens both doors. The context bounds the opening, not what follows.
func (g *Gateway) Open(ctx context.Context) error {
	var listen net.ListenConfig
	var err error
	if g.httpListener, err = listen.Listen(ctx, "tcp", g.cfg.HTTPListen); err != nil {
		return fmt.Errorf("--http-listen: %w", err)
	}
	if g.grpcListener, err = listen.Listen(ctx, "tcp", g.cfg.GRPCListen); err != nil {
		return errors.Join(fmt.Errorf("--grpc-listen: %w", err), g.httpListener.Close())
	}
	if g.devices != nil {
		if g.deviceListener, err = listen.Listen(ctx, "tcp", g.cfg.DeviceListen); err != nil {
			return errors.Join(fmt.Errorf("--device-listen: %w", err), g.httpListener.Close(), g.grpcListener.Close())
		}
		g.devices.Serve(g.deviceListener, g.failed)
	}
	goodbye, err := g.goodbye()
	if err != nil {
		return errors.Join(err, g.httpListener.Close(), g.grpcListener.Close())
	}
	g.http.Serve(g.connections.Listener(g.httpListener, goodbye), g.failed)
	// Nothing is said to a gRPC client: a server that speaks and then sends it away
	// (GOAWAY) it calls again at once and without end, one that closes it leaves
	// alone for a second and longer.
	g.grpc.Serve(g.connections.Listener(g.grpcListener, nil), g.Catalog.Synced(), g.failed)
	return nil
}

// goodbye is what one connection too many is told at the door for HTTP: nothing
// where that would take a handshake.
func (g *Gateway) goodbye() ([]byte, error) {
	if g.cfg.TLSCertFile != "" {
		return nil, nil
	}
	return rest.Goodbye(fault.New(fault.ResourceExhausted, "TOO_MANY_CONNECTIONS",
		"too many connections are open, or too many from your address; close some or try again later").WithRetryAfter(time.Second))
}

// HTTPAddr is where the door for REST/JSON is, once open.
func (g *Gateway) HTTPAddr() net.Addr { return g.httpListener.Addr() }

// GRPCAddr is where the door for native gRPC is, once open.
func (g *Gateway) GRPCAddr() net.Addr { return g.grpcListener.Addr() }

// DeviceAddr is where the door for displays is, once open; nil without one.
func (g *Gateway) DeviceAddr() net.Addr {
	if g.deviceListener == nil {
		return nil
	}
	return g.deviceListener.Addr()
}

// Ready returns nil once the catalog is in sync; see catalog.Synced.
func (g *Gateway) Ready(ctx context.Context) error {
	select {
	case <-g.Catalog.Synced():
		return nil
	default:
	}
	select {
	case <-g.Catalog.Synced():
		return nil
	case <-ctx.Done():
		return errors.New("the services are not known yet")
	}
}

// Drain has clients told that this gateway is leaving; the doors still serve.
func (g *Gateway) Drain() {
	g.http.Drain()
	g.grpc.Drain()
}

// Close closes the doors at once and waits for the calls in flight, at the
// longest until ctx ends. Displays are sent away meanwhile.
func (g *Gateway) Close(ctx context.Context) error {
	closed := make(chan error)
	go func() { closed <- g.grpc.Stop(ctx) }()
	left := make(chan error)
	go func() {
		if g.devices == nil {
			left <- nil
			return
		}
		left <- g.devices.Stop(ctx)
	}()
	err := errors.Join(g.http.Stop(ctx), <-closed, <-left)
	g.connections.Wait()
	return err
}
