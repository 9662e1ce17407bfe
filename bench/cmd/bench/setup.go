package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/platform/edges"
	"github.com/marquee-ads/marquee/platform/mesh"
	"github.com/marquee-ads/marquee/platform/release"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// environment is what the measured instances are registered for.
const environment = "development"

// drawn are the edges of the bench's own cluster.
const drawn = `
service "echo" { protocol = "grpc" }
edge "gateway"     "echo" {}
edge "copyproxy"   "echo" {}
edge "restgateway" "echo" {}
edge "bench"       "echo" {}
`

// bench is one run.
type bench struct {
	root, dir string
	rounds    int
	each      time.Duration
	only      string
	profile   string

	cluster   *cluster.Cluster
	processes []*process
	closers   []func()
	rows      []*row
}

// close ends what setUp began, in reverse.
func (b *bench) close() {
	for i := len(b.closers) - 1; i >= 0; i-- {
		b.closers[i]()
	}
	for i := len(b.processes) - 1; i >= 0; i-- {
		b.processes[i].stop()
	}
	if b.cluster != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if err := b.cluster.Wipe(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "bench: remove the cluster:", err)
		}
	}
}

func (b *bench) setUp(ctx context.Context) error {
	var err error
	if b.dir, err = os.MkdirTemp("", "marquee-bench-"); err != nil {
		return err
	}
	b.closers = append(b.closers, func() { _ = os.RemoveAll(b.dir) })

	fmt.Println("building the services and the yardsticks")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.dir, "./cmd/plainecho", "./cmd/copyproxy", "./cmd/restgateway")
	build.Dir = filepath.Join(b.root, "bench")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the yardsticks: %w\n%s", err, out)
	}
	binaries, err := release.Build(ctx, "echod", "gatewayd")
	if err != nil {
		return err
	}

	fmt.Println("starting Consul and Nomad")
	b.cluster, err = cluster.Open(cluster.Config{Dir: cluster.Folder(b.root, "bench"), Progress: func(s cluster.Step) {
		if s.Done {
			fmt.Println(" ", s.Text)
		}
	}})
	if err != nil {
		return err
	}
	if err := b.cluster.Up(ctx); err != nil {
		return err
	}
	e, err := edges.Parse([]byte(drawn), "bench")
	if err != nil {
		return err
	}
	if err := b.cluster.Apply(ctx, e); err != nil {
		return err
	}
	var env []string
	for _, v := range b.cluster.Env() {
		env = append(env, v.Name+"="+v.Value)
	}
	return b.makeRows(ctx, env, binaries["echod"].Path, binaries["gatewayd"].Path)
}

func (b *bench) makeRows(ctx context.Context, env []string, echod, gatewayd string) error {
	fmt.Println("starting what is measured")
	plain, err := b.startYardstick(ctx, "plainecho", nil)
	if err != nil {
		return err
	}
	// The same service with all its interceptors, once in plaintext and once in
	// the mesh: what is between the two is the mesh.
	ports, err := freePorts(4)
	if err != nil {
		return err
	}
	echoPlain, err := b.start("echo-plaintext", env, echod, "--mesh=plaintext", "--register=never", "--log-level=warn", "--listen="+ports[0])
	if err != nil {
		return err
	}
	echo, err := b.start("echo", env, echod, "--mesh=native", "--register=always", "--log-level=warn", "--listen="+ports[1])
	if err != nil {
		return err
	}
	gateway, err := b.start("gateway", env, gatewayd, "--register=never", "--log-level=warn", "--http-listen="+ports[2], "--grpc-listen="+ports[3])
	if err != nil {
		return err
	}
	copyMesh, err := b.startYardstick(ctx, "copyproxy", env)
	if err != nil {
		return err
	}
	copyPlain, err := b.startYardstick(ctx, "copyproxy-plaintext", nil, "-plaintext", plain.address)
	if err != nil {
		return err
	}
	restMesh, err := b.startYardstick(ctx, "restgateway", env)
	if err != nil {
		return err
	}

	meshCall, err := b.meshCall(ctx)
	if err != nil {
		return err
	}
	grpcCall := func(address string) func(context.Context) error {
		call, err := b.plainCall(address)
		if err != nil {
			return func(context.Context) error { return err }
		}
		return call
	}
	b.rows = []*row{
		{name: "plaintext", what: "a bare grpc-go server, no interceptors", call: grpcCall(plain.address), processes: []*process{plain}},
		{name: "plaintext service", against: "plaintext", what: "the same call on the service harness: recovery, request id, access log (off at this level), metrics, deadline, access rule, validation", call: grpcCall(ports[0]), processes: []*process{echoPlain}},
		{name: "mesh-native", against: "plaintext service", what: "the same service in the mesh: mutual TLS 1.3, identities checked both ways, intentions on each call, instances by the Consul resolver", call: meshCall, processes: []*process{echo}},
		{name: "copyproxy", what: "yardstick: copies bytes to the mesh, nothing else", call: grpcCall(copyMesh.address), processes: []*process{copyMesh, echo}},
		{name: "gateway gRPC", against: "copyproxy", what: "method table from reflection, access rule, request id, metrics, access log (off at this level), deadlines, limits, retries with a budget, then the mesh", call: grpcCall(ports[3]), processes: []*process{gateway, echo}},
		{name: "grpc-gateway", what: "yardstick: generated grpc-gateway into the mesh, nothing else", call: b.restCall(restMesh.address), processes: []*process{restMesh, echo}},
		{name: "gateway REST", against: "grpc-gateway", what: "as gateway gRPC, with JSON transcoded from descriptors", call: b.restCall(ports[2]), processes: []*process{gateway, echo}},
		{name: "copyproxy, plaintext", what: "yardstick: copies bytes to the bare server in plaintext", call: grpcCall(copyPlain.address), processes: []*process{copyPlain, plain}},
	}
	for _, add := range []func(context.Context, *process) (*row, error){b.nginx, b.envoy} {
		r, err := add(ctx, plain)
		if err != nil {
			return err
		}
		if r != nil {
			b.rows = append(b.rows, r)
		}
	}
	for _, r := range b.rows {
		if err := b.until(ctx, r.name+" answers", func() error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			return r.call(ctx)
		}); err != nil {
			return err
		}
	}
	return nil
}

// text is what is echoed: the size of a small request.
const text = "a-hundred-bytes-of-text-that-stand-for-a-small-request-with-an-id-a-name-and-a-few-numbers-in-it-1234"

func echoCall(conn grpc.ClientConnInterface) func(context.Context) error {
	client := echov1.NewEchoServiceClient(conn)
	return func(ctx context.Context) error {
		answer, err := client.Echo(ctx, &echov1.EchoRequest{Text: text})
		if err == nil && answer.GetText() != text {
			err = fmt.Errorf("echoed %q", answer.GetText())
		}
		return err
	}
}

func (b *bench) plainCall(address string) (func(context.Context) error, error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	b.closers = append(b.closers, func() { conn.Close() })
	return echoCall(conn), nil
}

// meshCall is this process as a member of the mesh.
func (b *bench) meshCall(ctx context.Context) (func(context.Context) error, error) {
	log := hclog.New(&hclog.LoggerOptions{Name: "bench", Level: hclog.Error})
	instances := discovery.New(b.cluster.Consul(), discovery.Options{Log: log})
	m, err := mesh.Native(ctx, mesh.NativeConfig{
		Consul: b.cluster.Consul(), Service: "bench", Environment: environment, Log: log,
		Resolver: discovery.NewBuilder(instances, environment), Watcher: instances,
	})
	if err != nil {
		return nil, err
	}
	conn, err := m.NewClient("echo")
	if err != nil {
		return nil, err
	}
	b.closers = append(b.closers, func() { _ = instances.Close() }, func() { _ = m.Close() }, func() { conn.Close() })
	return echoCall(conn), nil
}

func (b *bench) restCall(address string) func(context.Context) error {
	transport := &http.Transport{MaxIdleConnsPerHost: callers}
	b.closers = append(b.closers, transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	url := "http://" + address + "/v1/echo/" + text
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), text) {
			return fmt.Errorf("HTTP %d: %s", resp.StatusCode, body)
		}
		return nil
	}
}

// freePorts are n loopback addresses that nobody listens on.
func freePorts(n int) ([]string, error) {
	var addresses []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // returns at once
		if err != nil {
			return nil, errors.Join(errors.New("find a free port"), err)
		}
		defer l.Close()
		addresses = append(addresses, l.Addr().String())
	}
	return addresses, nil
}
