package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"syscall"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/nats-io/nats.go"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/e2e/scenario"
	"github.com/marquee-ads/marquee/platform/edges"
	"github.com/marquee-ads/marquee/platform/mesh"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// sslRequest is how every Postgres client begins; a server answers one byte.
var sslRequest = []byte{0, 0, 0, 8, 4, 210, 22, 47}

// Every identity is tried against every service and database: the drawn edges
// succeed, and nothing else.
func TestIsolation(t *testing.T) {
	ctx := begin(t, 3*time.Minute)
	tried, allowed := 0, 0
	for _, caller := range append(the.edges.Identities(), "stranger") {
		m := as(t, caller)
		for _, s := range the.edges.Services() {
			tried++
			reach := reachGRPC
			if s.Protocol == edges.TCP {
				reach = reachPostgres
			}
			let, err := reach(ctx, m, s.Name)
			require.NoError(t, err, "%s -> %s: neither let in nor refused", caller, s.Name)
			require.Equal(t, the.edges.Allowed(caller, s.Name), let, "%s -> %s: drawn, and let in", caller, s.Name)
			if let {
				allowed++
			}
		}
	}
	require.Equal(t, len(the.edges.Edges()), allowed, "as many edges as drawn")
	t.Logf("tried %d pairs: the %d drawn edges succeed, the other %d are refused", tried, allowed, tried-allowed)
}

// reachGRPC says whether the mesh lets a call in. An error is neither.
func reachGRPC(ctx context.Context, m mesh.Mesh, service string) (bool, error) {
	conn, err := m.NewClient(service)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	_, err = healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}, grpc.WaitForReady(true))
	if status.Code(err) == codes.PermissionDenied {
		return false, nil
	}
	return err == nil, err
}

// reachPostgres says whether the server answers with its first byte, or the
// mesh closes the connection. An error is neither.
func reachPostgres(ctx context.Context, m mesh.Mesh, service string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := m.DialContext(ctx, service)
	if err != nil {
		return false, fmt.Errorf("the connection itself, which anyone of the mesh can make: %w", err)
	}
	defer conn.Close()
	err = askPostgres(conn)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return false, nil
	}
	return err == nil, err
}

func askPostgres(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(sslRequest); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

// Raw connections, to every port that any process of the platform listens on:
// in plaintext, in TLS without a certificate, and in TLS with a forged one.
func TestIsolationOfPorts(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	declared := ports(t, ctx)
	forged := forgedCertificate(t)
	for port, p := range declared {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		switch {
		case p.label == "admin":
			// Health and metrics are for the machine; no business method is there.
			err := scenario.Knock(ctx, address, insecure.NewCredentials())
			require.NotEqual(t, codes.OK, status.Code(err), "%s admin port serves a business method", p.job)
		case p.job == "gateway":
			// The public doors are for everybody.
		case p.job == "nats" && p.label == "client":
			// It greets whoever is on the machine, and asks for a password.
			_, err := nats.Connect(address, nats.Timeout(5*time.Second))
			require.ErrorIs(t, err, nats.ErrAuthorization)
		default:
			for name, creds := range map[string]credentials.TransportCredentials{
				"plaintext":             insecure.NewCredentials(),
				"TLS, no certificate":   credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}),
				"TLS, forged identity":  credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{forged}}),
				"TLS 1.2, forged again": credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{forged}, MaxVersion: tls.VersionTLS12}),
			} {
				require.Error(t, scenario.Knock(ctx, address, creds), "%s port %s of %s over %s", address, p.label, p.job, name)
			}
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
			require.NoError(t, err)
			require.Error(t, askPostgres(conn), "bytes to port %s of %s", p.label, p.job)
			conn.Close()
		}
	}

	// Nothing listens that no job declares, and Postgres not at all.
	listening := listeners(t)
	require.NotEmpty(t, listening)
	for port, program := range listening {
		require.NotEqual(t, "postgres", program, "Postgres listens on TCP port %d", port)
		require.Contains(t, declared, port, "%s listens on a port that its job does not declare", program)
	}
	// The agents say nothing of use without a token.
	agents, err := the.Cluster().Status(ctx)
	require.NoError(t, err)
	for _, agent := range agents.Agents {
		paths := map[string][]string{
			"consul":       {"/v1/agent/self", "/v1/agent/metrics", "/v1/acl/tokens"},
			"nomad-server": {"/v1/agent/self", "/v1/nodes", "/v1/acl/tokens"},
			"nomad-client": {"/v1/agent/self", "/v1/client/stats"},
		}[agent.Name]
		require.NotEmpty(t, paths, "paths to try of %s", agent.Name)
		for _, path := range paths {
			require.NotEqual(t, http.StatusOK, get(t, "http://"+agent.Address+path), "%s%s without a token", agent.Name, path)
		}
	}
	// The public doors serve no method that is for services alone.
	public := 0
	for port, p := range declared {
		if p.job == "gateway" && p.label == "grpc" {
			public++
			conn, err := grpc.NewClient(net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), grpc.WithTransportCredentials(insecure.NewCredentials()))
			require.NoError(t, err)
			_, err = echov1.NewEchoServiceClient(conn).Internal(ctx, &echov1.InternalRequest{})
			require.Equal(t, codes.Unimplemented, status.Code(err), "%v", err)
			conn.Close()
		}
	}
	require.Equal(t, 2, public, "public gRPC doors")
	t.Logf("%d ports declared, %d in use; all but the gateways' public doors refuse raw connections", len(declared), len(listening))
}

// get is the status of a GET without any token.
func get(t *testing.T, url string) int {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	response, err := client.Get(url)
	require.NoError(t, err)
	response.Body.Close()
	return response.StatusCode
}

type port struct{ job, label string }

// ports are those that Nomad gave to the running allocations.
func ports(t *testing.T, ctx context.Context) map[int]port {
	t.Helper()
	found := map[int]port{}
	list, _, err := the.Cluster().Nomad().Allocations().List((&nomadapi.QueryOptions{}).WithContext(ctx))
	require.NoError(t, err)
	for _, stub := range list {
		if stub.ClientStatus != nomadapi.AllocClientStatusRunning {
			continue
		}
		alloc, _, err := the.Cluster().Nomad().Allocations().Info(stub.ID, nil)
		require.NoError(t, err)
		for _, p := range alloc.AllocatedResources.Shared.Ports {
			found[p.Value] = port{job: stub.JobID, label: p.Label}
		}
	}
	require.NotEmpty(t, found)
	return found
}

// forgedCertificate claims to be the gateway, signed by itself.
func forgedCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	roots, _, err := the.Cluster().Consul().Agent().ConnectCARoots(nil)
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, template(roots.TrustDomain), template(roots.TrustDomain), &key.PublicKey, key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func template(trustDomain string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{{Scheme: "spiffe", Host: trustDomain, Path: "/ns/default/dc/dc1/svc/gateway"}},
	}
}

// Taking an edge away stops new calls within a second, on connections that
// exist too, and ends an open stream; giving it back lifts that.
func TestDenyAndAllow(t *testing.T) {
	ctx := begin(t, 2*time.Minute)
	d := openDoors(t, ctx)
	account := accountv1.NewAccountServiceClient(d.GRPC)
	echo := echov1.NewEchoServiceClient(d.GRPC)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		for _, service := range []string{"account", "echo"} {
			if err := the.Cluster().SetEdge(ctx, "gateway", service, true); err != nil {
				t.Error(err)
			}
		}
	})
	call := func(ctx context.Context) error {
		_, err := account.GetSigningKeys(ctx, &accountv1.GetSigningKeysRequest{})
		return err
	}
	denied := func() error {
		if err := call(ctx); status.Code(err) != codes.PermissionDenied {
			return fmt.Errorf("a call ended with %w", errors.Join(errNotYet, err))
		}
		return nil
	}
	allowed := func() error { return call(ctx) }

	for range 20 { // so that both gateways have connections to all instances
		require.NoError(t, call(ctx))
	}
	began := time.Now()
	require.NoError(t, the.Cluster().SetEdge(ctx, "gateway", "account", false))
	scenario.Eventually(ctx, t, time.Second, "a call is refused", denied)
	took := time.Since(began)
	// Each instance learns it by itself; all must have within the second.
	scenario.Eventually(ctx, t, time.Second-took, "twenty calls in a row are refused", func() error {
		for range 20 {
			if err := denied(); err != nil {
				return err
			}
		}
		return nil
	})
	t.Logf("the first call was refused %s after the deny", took.Round(time.Millisecond))
	require.NoError(t, the.Cluster().SetEdge(ctx, "gateway", "account", true))
	took = scenario.Eventually(ctx, t, 2*time.Second, "calls succeed again", allowed)
	t.Logf("the first call succeeded %s after the allow", took.Round(time.Millisecond))

	stream, err := echo.Repeat(ctx, &echov1.RepeatRequest{Text: "tick", IntervalMs: 20})
	require.NoError(t, err)
	for range 5 {
		_, err := stream.Recv()
		require.NoError(t, err)
	}
	began = time.Now()
	require.NoError(t, the.Cluster().SetEdge(ctx, "gateway", "echo", false))
	for err == nil {
		_, err = stream.Recv()
	}
	t.Logf("the open stream ended %s after the deny: %v", time.Since(began).Round(time.Millisecond), err)
	require.Equal(t, codes.PermissionDenied, status.Code(err), "%v", err)
	require.Less(t, time.Since(began), time.Second)
	require.NoError(t, the.Cluster().SetEdge(ctx, "gateway", "echo", true))
	scenario.Eventually(ctx, t, 2*time.Second, "the stream can be opened again", func() error {
		stream, err := echo.Repeat(ctx, &echov1.RepeatRequest{Text: "tick", Count: 1})
		if err != nil {
			return err
		}
		_, err = stream.Recv()
		return err
	})
}
