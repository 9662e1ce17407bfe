package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/marquee-ads/marquee/bench/yardstick"
	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/edges"
	"github.com/marquee-ads/marquee/platform/freeport"
	"github.com/marquee-ads/marquee/platform/release"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// drawn are the edges of the bench's own cluster.
const drawn = `
service "echo" { protocol = "grpc" }
service "account" { protocol = "grpc" }
service "account-db" { protocol = "tcp" }
service "device" { protocol = "grpc" }
service "device-db" { protocol = "tcp" }
service "order" { protocol = "grpc" }
service "order-db" { protocol = "tcp" }
edge "gateway"     "echo" {}
edge "copyproxy"   "echo" {}
edge "restgateway" "echo" {}
edge "bench"       "echo" {}
edge "gateway"     "account" {}
edge "account"     "account-db" {}
edge "gateway"     "device" {}
edge "device"      "account" {}
edge "device"      "device-db" {}
edge "gateway"     "order" {}
edge "bench"       "order" {}
edge "order"       "account" {}
edge "order"       "device" {}
edge "order"       "order-db" {}
`

// bench is one run.
type bench struct {
	root, dir string
	only      string

	cluster                  *cluster.Cluster
	env                      []string // how a process reaches the cluster
	programs                 map[string]release.Binary
	gateway                  *process
	gatewayHTTP, gatewayGRPC string
	accounts                 *accounts // nil before they are needed

	closers []func()
}

// close ends what was begun, in reverse.
func (b *bench) close() {
	for _, end := range slices.Backward(b.closers) {
		end()
	}
}

// setUp builds what is measured, and starts a cluster and the gateway in it.
func (b *bench) setUp(ctx context.Context) error {
	var err error
	if b.dir, err = os.MkdirTemp("", "marquee-bench-"); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	b.closers = append(b.closers, func() { _ = os.RemoveAll(b.dir) })
	// Postgres, which does not run as root, reaches its folder in there.
	if err := os.Chmod(b.dir, 0o711); err != nil {
		return fmt.Errorf("open the folder: %w", err)
	}

	fmt.Fprintln(os.Stderr, "building the services and the yardsticks")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.dir, "./cmd/plainecho", "./cmd/copyproxy", "./cmd/restgateway", "./cmd/monolith", "./cmd/fleet")
	build.Dir = filepath.Join(b.root, "bench")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the yardsticks: %w\n%s", err, out)
	}
	if b.programs, err = release.Build(ctx, "echod", "gatewayd", "accountd", "deviced", "orderd", "meshproxyd"); err != nil {
		return err
	}

	fmt.Fprintln(os.Stderr, "starting Consul and Nomad")
	b.cluster, err = cluster.Open(cluster.Config{Dir: cluster.Folder(b.root, "bench"), Progress: func(line string) { fmt.Fprintln(os.Stderr, " ", line) }})
	if err != nil {
		return err
	}
	b.closers = append(b.closers, b.removeCluster)
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
	for _, v := range b.cluster.Env() {
		b.env = append(b.env, v.Name+"="+v.Value)
	}
	ports, err := freeAddresses(2)
	if err != nil {
		return err
	}
	b.gatewayHTTP, b.gatewayGRPC = ports[0], ports[1]
	b.gateway, err = b.startService("gateway", "gatewayd", "--register=never", "--http-listen="+ports[0], "--grpc-listen="+ports[1])
	return err
}

// removeCluster has a time of its own: what ended the run does not end it.
func (b *bench) removeCluster() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := b.cluster.Wipe(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench: remove the cluster:", err)
	}
}

// wanted are the rows that -only leaves.
func (b *bench) wanted(rows []*row) []*row {
	return slices.DeleteFunc(rows, func(r *row) bool { return !strings.Contains(r.name, b.only) })
}

// echoRows starts what the calls of the echo service are measured on.
func (b *bench) echoRows(ctx context.Context) ([]*row, error) {
	fmt.Fprintln(os.Stderr, "starting what is measured")
	plain, err := b.startYardstick(ctx, "plainecho", nil)
	if err != nil {
		return nil, err
	}
	// The same service with all its interceptors, once in plaintext and once in
	// the mesh: what is between the two is the mesh.
	ports, err := freeAddresses(1)
	if err != nil {
		return nil, err
	}
	echoPlain, err := b.startService("echo-plaintext", "echod", "--mesh=plaintext", "--register=never", "--listen="+ports[0])
	if err != nil {
		return nil, err
	}
	echo, err := b.startService("echo", "echod", "--register=always")
	if err != nil {
		return nil, err
	}
	copyMesh, err := b.startYardstick(ctx, "copyproxy", b.env)
	if err != nil {
		return nil, err
	}
	copyPlain, err := b.startYardstick(ctx, "copyproxy-plaintext", nil, "-plaintext", plain.address)
	if err != nil {
		return nil, err
	}
	restMesh, err := b.startYardstick(ctx, "restgateway", b.env)
	if err != nil {
		return nil, err
	}
	// This process as a member of the mesh.
	meshed, hangUp, err := yardstick.DialMesh(ctx, b.cluster.Consul(), "bench", "echo")
	if err != nil {
		return nil, err
	}
	b.closers = append(b.closers, hangUp)

	rows := []*row{
		{name: "plaintext", what: "a bare grpc-go server, no interceptors", call: b.grpcCall(plain.address), processes: []*process{plain}},
		{name: "plaintext service", against: []string{"plaintext"}, what: "the same call on the service harness: recovery, request id, access log (off at this level), metrics, deadline, access rule, validation", call: b.grpcCall(ports[0]), processes: []*process{echoPlain}},
		{name: "mesh-native", against: []string{"plaintext service", "plaintext"}, what: "the same service in the mesh: mutual TLS 1.3, identities checked both ways, intentions on each call, instances by the Consul resolver", call: echoCall(meshed), processes: []*process{echo}},
		{name: "copyproxy", what: "yardstick: copies bytes to the mesh, nothing else", call: b.grpcCall(copyMesh.address), processes: []*process{copyMesh, echo}},
		{name: "gateway gRPC", against: []string{"copyproxy"}, what: "method table from reflection, access rule, request id, metrics, access log (off at this level), deadlines, limits, retries with a budget, then the mesh", call: b.grpcCall(b.gatewayGRPC), processes: []*process{b.gateway, echo}},
		{name: "grpc-gateway", what: "yardstick: generated grpc-gateway into the mesh, nothing else", call: b.restCall(restMesh.address), processes: []*process{restMesh, echo}},
		{name: "gateway REST", against: []string{"grpc-gateway"}, what: "as gateway gRPC, with JSON transcoded from descriptors", call: b.restCall(b.gatewayHTTP), processes: []*process{b.gateway, echo}},
		{name: "copyproxy, plaintext", what: "yardstick: copies bytes to the bare server in plaintext", call: b.grpcCall(copyPlain.address), processes: []*process{copyPlain, plain}},
	}
	for _, add := range []func(context.Context, *process) (*row, error){b.nginx, b.envoy} {
		r, err := add(ctx, plain)
		if err != nil {
			return nil, err
		}
		if r != nil {
			rows = append(rows, r)
		}
	}
	for _, r := range rows {
		r.callers = echoCallers
		if err := until(ctx, r.name+" answers", r.call); err != nil {
			return nil, err
		}
	}
	return rows, nil
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

// grpcCall is in plaintext.
func (b *bench) grpcCall(address string) func(context.Context) error {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return func(context.Context) error { return err }
	}
	b.closers = append(b.closers, func() { conn.Close() })
	return echoCall(conn)
}

func (b *bench) restCall(address string) func(context.Context) error {
	transport := &http.Transport{MaxIdleConnsPerHost: echoCallers}
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

// freeAddresses are n loopback addresses that nobody listens on.
func freeAddresses(n int) ([]string, error) {
	ports, err := freeport.Take(n)
	addresses := make([]string, len(ports))
	for i, port := range ports {
		addresses[i] = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	}
	return addresses, err
}
