package mesh_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/marquee-ads/marquee/platform/consultest"
	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/platform/fault"
	"github.com/marquee-ads/marquee/platform/mesh"
	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

// pair is echo as a server and gateway as its client, in one mesh.
type pair struct {
	agent   *consultest.Agent
	echo    mesh.Mesh
	gateway mesh.Mesh
	impl    *echo
	address string
	client  echov1.EchoServiceClient
}

func newPair(t testing.TB, agent *consultest.Agent, consul *consulapi.Client) *pair {
	p := &pair{agent: agent, impl: &echo{chatEnded: make(chan error, 100)}}
	p.echo = join(t, consul, "echo", nil)
	p.address = serve(t, p.echo, p.impl)
	p.gateway = p.member(t, consul, "gateway")
	p.client = client(t, p.gateway, "echo")
	return p
}

func (p *pair) member(t testing.TB, consul *consulapi.Client, service string) mesh.Mesh {
	return join(t, consul, service, func(c *mesh.NativeConfig) { c.Resolver = resolverTo(p.address) })
}

func TestNative(t *testing.T) {
	agent := consultest.Start(t)
	consul := agent.Client

	t.Run("Identity", func(t *testing.T) {
		p := newPair(t, agent, consul)
		intend(t, consul, "echo", source("gateway", allow))
		becomes(t, p.client, codes.OK)
		var server peer.Peer
		who, err := p.client.Whoami(deadline(t, 5*time.Second), &echov1.WhoamiRequest{}, grpc.Peer(&server))
		require.NoError(t, err)
		require.Equal(t, "gateway", who.GetCallingService())
		id, ok := mesh.PeerFromAuthInfo(server.AuthInfo)
		require.True(t, ok)
		require.Equal(t, "echo", id.Service)
		require.Equal(t, "dc1", id.Datacenter)
		require.NotEmpty(t, id.TrustDomain)
	})

	t.Run("DenyAndAllow", func(t *testing.T) {
		p := newPair(t, agent, consul)
		intend(t, consul, "echo", source("gateway", allow))
		becomes(t, p.client, codes.OK)
		for range 3 {
			intend(t, consul, "echo", source("gateway", deny))
			denied := becomes(t, p.client, codes.PermissionDenied)
			intend(t, consul, "echo", source("gateway", allow))
			lifted := becomes(t, p.client, codes.OK)
			t.Logf("denied after %s, allowed again after %s", denied, lifted)
			require.Less(t, denied, within)
			require.Less(t, lifted, within)
		}
		_, err := consul.ConfigEntries().Delete(consulapi.ServiceIntentions, "echo", nil)
		require.NoError(t, err)
		require.Less(t, becomes(t, p.client, codes.PermissionDenied), within)
	})

	t.Run("DenyEndsStreams", func(t *testing.T) {
		p := newPair(t, agent, consul)
		intend(t, consul, "echo", source("gateway", allow))
		becomes(t, p.client, codes.OK)
		ctx := deadline(t, 30*time.Second)

		// One whose handler waits to receive, one that waits for the end of its
		// context, and one that waits to send as nobody reads.
		chat, err := p.client.Chat(ctx)
		require.NoError(t, err)
		require.NoError(t, chat.Send(&echov1.ChatRequest{Text: "a"}))
		_, err = chat.Recv()
		require.NoError(t, err)
		idle, err := p.client.Repeat(ctx, &echov1.RepeatRequest{Text: "x", Count: 1})
		require.NoError(t, err)
		_, err = idle.Recv()
		require.NoError(t, err)
		flood, err := p.client.Repeat(ctx, &echov1.RepeatRequest{Text: string(make([]byte, 1000))})
		require.NoError(t, err)
		_, err = flood.Recv()
		require.NoError(t, err)

		began := time.Now()
		intend(t, consul, "echo", source("gateway", deny))
		for name, recv := range map[string]func() error{
			"chat": func() error { _, err := chat.Recv(); return err },
			"idle": func() error { _, err := idle.Recv(); return err },
			"flood": func() error {
				for {
					if _, err := flood.Recv(); err != nil {
						return err
					}
				}
			},
		} {
			err := recvWithin(t, within, recv)
			s := status.Convert(err)
			require.Equal(t, codes.PermissionDenied, s.Code(), "%s: %v", name, err)
			require.Len(t, s.Details(), 1, name)
			info, ok := s.Details()[0].(*errdetails.ErrorInfo)
			require.True(t, ok)
			require.Equal(t, mesh.ReasonDenied, info.GetReason())
			require.Equal(t, "marquee", info.GetDomain())
		}
		t.Logf("three streams ended %s after the deny was sent", time.Since(began))
		select {
		case err := <-p.impl.chatEnded:
			f, ok := fault.From(err)
			require.True(t, ok, "%v", err)
			require.Equal(t, mesh.ReasonDenied, f.Reason)
		case <-time.After(within):
			t.Fatal("the handler of the stream still runs")
		}
		_, err = p.client.Chat(ctx)
		require.NoError(t, err)
		intend(t, consul, "echo", source("gateway", allow))
		becomes(t, p.client, codes.OK)
		again, err := p.client.Chat(ctx)
		require.NoError(t, err)
		require.NoError(t, again.Send(&echov1.ChatRequest{Text: "b"}))
		_, err = again.Recv()
		require.NoError(t, err)
	})

	t.Run("OtherServiceStaysWhenOneIsDenied", func(t *testing.T) {
		p := newPair(t, agent, consul)
		other := client(t, p.member(t, consul, "order"), "echo")
		intend(t, consul, "echo", source("gateway", allow), source("order", allow))
		becomes(t, p.client, codes.OK)
		becomes(t, other, codes.OK)
		chat, err := other.Chat(deadline(t, 20*time.Second))
		require.NoError(t, err)
		intend(t, consul, "echo", source("gateway", deny), source("order", allow))
		becomes(t, p.client, codes.PermissionDenied)
		require.Equal(t, codes.OK, call(t, other))
		require.NoError(t, chat.Send(&echov1.ChatRequest{Text: "still here"}))
		_, err = chat.Recv()
		require.NoError(t, err)
	})

	t.Run("NoEdge", func(t *testing.T) {
		p := newPair(t, agent, consul)
		intend(t, consul, "echo", source("gateway", allow))
		becomes(t, p.client, codes.OK)
		require.Equal(t, codes.PermissionDenied, call(t, client(t, p.member(t, consul, "order"), "echo")))
	})

	t.Run("AnotherServiceAnswers", func(t *testing.T) {
		p := newPair(t, agent, consul)
		intend(t, consul, "echo", source("gateway", allow))
		becomes(t, p.client, codes.OK)
		_, err := client(t, p.gateway, "account").Echo(deadline(t, 5*time.Second), &echov1.EchoRequest{})
		require.Equal(t, codes.Unavailable, status.Code(err))
		require.ErrorContains(t, err, "mesh: dialled service")
	})

	t.Run("Strangers", func(t *testing.T) {
		p := newPair(t, agent, consul)
		intend(t, consul, "echo", source("*", allow))
		becomes(t, p.client, codes.OK)
		for name, creds := range map[string]credentials.TransportCredentials{
			"Plaintext":     insecure.NewCredentials(),
			"NoCertificate": credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}),
			"OtherCA":       credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{selfSigned(t)}}),
		} {
			conn, err := grpc.NewClient("passthrough:///"+p.address, grpc.WithTransportCredentials(creds))
			require.NoError(t, err)
			_, err = echov1.NewEchoServiceClient(conn).Echo(deadline(t, 5*time.Second), &echov1.EchoRequest{})
			require.Equal(t, codes.Unavailable, status.Code(err), name)
			conn.Close()
		}
	})

	t.Run("HalfOpenHandshakes", func(t *testing.T) {
		p := newPair(t, agent, consul)
		intend(t, consul, "echo", source("gateway", allow))
		becomes(t, p.client, codes.OK)
		before := runtime.NumGoroutine()
		// More than there may be handshakes at once, none of which says a word.
		began := time.Now()
		var silent []net.Conn
		for range 600 {
			conn, err := net.Dial("tcp", p.address)
			require.NoError(t, err)
			defer conn.Close()
			silent = append(silent, conn)
		}
		newcomer := client(t, p.member(t, consul, "gateway"), "echo")
		asked := time.Now()
		_, err := newcomer.Echo(deadline(t, 5*time.Second), &echov1.EchoRequest{}, grpc.WaitForReady(true))
		require.NoError(t, err)
		require.Equal(t, codes.OK, call(t, p.client))
		t.Logf("served after %s with 600 half-open peers", time.Since(asked).Round(time.Millisecond))
		for i, conn := range silent {
			// The first had to make room, the others have the 5 s of a handshake.
			within := time.Now().Add(10 * time.Second)
			if i < 300 {
				within = time.Now().Add(time.Second)
			}
			require.NoError(t, conn.SetReadDeadline(within))
			_, err := conn.Read(make([]byte, 1))
			require.Error(t, err)
			require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "connection %d is still open after %s", i, time.Since(began))
		}
		t.Logf("all were closed after %s", time.Since(began).Round(time.Millisecond))
		require.Eventually(t, func() bool { return runtime.NumGoroutine() < before+50 }, 5*time.Second, 10*time.Millisecond,
			"their goroutines are left")
	})

	t.Run("Wildcards", func(t *testing.T) {
		p := newPair(t, agent, consul)
		intend(t, consul, "echo", source("gateway", allow))
		becomes(t, p.client, codes.OK)
		intend(t, consul, "*", source("*", deny))
		require.Equal(t, codes.OK, call(t, p.client), "the named intention comes first")
		_, err := consul.ConfigEntries().Delete(consulapi.ServiceIntentions, "echo", nil)
		require.NoError(t, err)
		require.Less(t, becomes(t, p.client, codes.PermissionDenied), within)
		intend(t, consul, "*", source("*", allow))
		require.Less(t, becomes(t, p.client, codes.OK), within)
		_, err = consul.ConfigEntries().Delete(consulapi.ServiceIntentions, "*", nil)
		require.NoError(t, err)
		require.Less(t, becomes(t, p.client, codes.PermissionDenied), within)
	})

	t.Run("ThroughDiscovery", func(t *testing.T) {
		intend(t, consul, "echo", source("gateway", allow))
		server := join(t, consul, "echo", nil)
		for _, id := range []string{"echo-1", "echo-2", "echo-3"} {
			registered, err := discovery.Register(deadline(t, 10*time.Second), consul, discovery.Registration{
				Service: "echo", ID: id, Address: serve(t, server, &echo{id: id}), Environment: "test", ConnectNative: true,
			})
			require.NoError(t, err)
			registered.SetReady(true)
			defer func() { require.NoError(t, registered.Deregister(context.Background())) }()
		}
		found := discovery.New(consul, discovery.Options{})
		defer found.Close()
		gateway := join(t, consul, "gateway", func(c *mesh.NativeConfig) { c.Resolver = discovery.NewBuilder(found, "test") })
		c := client(t, gateway, "echo")
		answer := func() string {
			res, err := c.Echo(deadline(t, 5*time.Second), &echov1.EchoRequest{}, grpc.WaitForReady(true))
			require.NoError(t, err)
			return res.GetInstanceId()
		}
		seen := map[string]int{}
		require.Eventually(t, func() bool { seen[answer()]++; return len(seen) == 3 }, 5*time.Second, time.Millisecond)
		clear(seen)
		for range 300 {
			seen[answer()]++
		}
		require.Equal(t, map[string]int{"echo-1": 100, "echo-2": 100, "echo-3": 100}, seen)
	})

	t.Run("Permissions", func(t *testing.T) {
		_, _, err := consul.ConfigEntries().Set(&consulapi.ServiceConfigEntry{Kind: consulapi.ServiceDefaults, Name: "echo", Protocol: "grpc"}, nil)
		require.NoError(t, err)
		p := newPair(t, agent, consul)
		intend(t, consul, "echo", &consulapi.SourceIntention{Name: "gateway", Permissions: []*consulapi.IntentionPermission{
			{Action: deny, HTTP: &consulapi.IntentionHTTPPermission{PathExact: echov1.EchoService_Chat_FullMethodName}},
			{Action: allow, HTTP: &consulapi.IntentionHTTPPermission{PathExact: echov1.EchoService_Whoami_FullMethodName,
				Header: []consulapi.IntentionHTTPHeaderPermission{{Name: "x-tenant", Exact: "acme"}}}},
			{Action: allow, HTTP: &consulapi.IntentionHTTPPermission{PathPrefix: "/marquee.echo.v1.EchoService/E", Methods: []string{"POST"}}},
		}})
		becomes(t, p.client, codes.OK)
		ctx := deadline(t, 10*time.Second)
		_, err = p.client.Whoami(ctx, &echov1.WhoamiRequest{})
		require.Equal(t, codes.PermissionDenied, status.Code(err))
		_, err = p.client.Whoami(metadata.AppendToOutgoingContext(ctx, "x-tenant", "acme"), &echov1.WhoamiRequest{})
		require.NoError(t, err)
		chat, err := p.client.Chat(ctx)
		require.NoError(t, err)
		_, err = chat.Recv()
		require.Equal(t, codes.PermissionDenied, status.Code(err))
	})
}

func selfSigned(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	uri := mesh.Identity{TrustDomain: "other.consul", Datacenter: "dc1", Service: "gateway"}.URI()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{uri}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestNativeWithACL: a token with nothing but the service's identity suffices.
func TestNativeWithACL(t *testing.T) {
	agent := consultest.Start(t, consultest.WithACL())
	as := func(service string) *consulapi.Client {
		token, _, err := agent.Client.ACL().TokenCreate(&consulapi.ACLToken{
			ServiceIdentities: []*consulapi.ACLServiceIdentity{{ServiceName: service}},
		}, nil)
		require.NoError(t, err)
		c, err := consulapi.NewClient(&consulapi.Config{Address: agent.Address, Token: token.SecretID})
		require.NoError(t, err)
		return c
	}
	p := &pair{agent: agent, impl: &echo{}}
	p.echo = join(t, as("echo"), "echo", nil)
	p.address = serve(t, p.echo, p.impl)
	p.client = client(t, p.member(t, as("gateway"), "gateway"), "echo")
	require.Equal(t, codes.PermissionDenied, call(t, p.client))
	intend(t, agent.Client, "echo", source("gateway", allow))
	require.Less(t, becomes(t, p.client, codes.OK), within)

	// A token of another service gets no certificate, and is told so. (It would
	// if the agent had one of that service in its cache.)
	wrong := start(t, as("gateway"), "order", nil)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := wrong.Ready(ctx)
	require.ErrorContains(t, err, "no certificate yet")
	require.ErrorContains(t, err, "403")
}

// TestNotReady: before intentions have arrived nobody gets in, and Ready tells
// what is missing.
func TestNotReady(t *testing.T) {
	agent := consultest.Start(t)
	proxy := agent.Proxy()
	proxy.Fail("/v1/connect/intentions", 500)
	m := start(t, proxy.Client, "echo", nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := m.Ready(ctx)
	f, ok := fault.From(err)
	require.True(t, ok)
	require.Equal(t, fault.Unavailable, f.Code)
	require.Equal(t, mesh.ReasonNotReady, f.Reason)
	require.Contains(t, f.Message, "no intentions yet")

	address := serve(t, m, &echo{})
	gateway := join(t, agent.Client, "gateway", func(c *mesh.NativeConfig) { c.Resolver = resolverTo(address) })
	c := client(t, gateway, "echo")
	_, err = c.Echo(deadline(t, 5*time.Second), &echov1.EchoRequest{})
	require.Equal(t, codes.Unavailable, status.Code(err))
	require.ErrorContains(t, err, mesh.ReasonNotReady)

	intend(t, agent.Client, "echo", source("gateway", allow))
	proxy.Heal()
	becomes(t, c, codes.OK)
	require.NoError(t, m.Ready(deadline(t, time.Second)))
}

// TestAgentAway: without the agent calls and new connections go on, and when it
// is back, what changed meanwhile comes into force.
func TestAgentAway(t *testing.T) {
	agent := consultest.Start(t)
	p := newPair(t, agent, agent.Client)
	intend(t, agent.Client, "echo", source("gateway", allow))
	becomes(t, p.client, codes.OK)

	agent.Kill()
	require.Equal(t, codes.OK, call(t, p.client))
	require.Equal(t, codes.OK, call(t, client(t, p.gateway, "echo")))
	agent.Restart()
	intend(t, agent.Client, "echo", source("gateway", deny))
	// The watches retry at most lastRetry apart.
	took := becomes(t, p.client, codes.PermissionDenied)
	t.Logf("the deny was in force %s after the agent was back", took)
	intend(t, agent.Client, "echo", source("gateway", allow))
	require.Less(t, becomes(t, p.client, codes.OK), within)
}

// TestIndexBackwards: a server that was restored from older state does not
// freeze the intentions.
func TestIndexBackwards(t *testing.T) {
	agent := consultest.Start(t)
	proxy := agent.Proxy()
	proxy.OffsetIndex(1_000_000)
	p := newPair(t, agent, proxy.Client)
	intend(t, agent.Client, "echo", source("gateway", allow))
	becomes(t, p.client, codes.OK)
	proxy.OffsetIndex(0)
	intend(t, agent.Client, "echo", source("gateway", deny))
	becomes(t, p.client, codes.PermissionDenied)
	intend(t, agent.Client, "echo", source("gateway", allow))
	require.Less(t, becomes(t, p.client, codes.OK), within)
}

// TestRotation rotates the CA's root under load on new and old connections.
func TestRotation(t *testing.T) {
	agent := consultest.Start(t)
	consul := agent.Client
	p := newPair(t, agent, consul)
	intend(t, consul, "echo", source("gateway", allow))
	becomes(t, p.client, codes.OK)

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var load sync.WaitGroup
	var mu sync.Mutex
	servers, clients, calls := map[string]bool{}, map[string]bool{}, 0
	failures := []error{}
	note := func(server *peer.Peer, err error) {
		mu.Lock()
		defer mu.Unlock()
		calls++
		if err != nil {
			failures = append(failures, err)
			return
		}
		servers[certificateOf(server)] = true
	}
	p.impl.called = func(ctx context.Context) {
		caller, _ := peer.FromContext(ctx)
		mu.Lock()
		defer mu.Unlock()
		clients[certificateOf(caller)] = true
	}
	loop := func(one func()) {
		load.Go(func() {
			tick := time.NewTicker(5 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				one()
				<-tick.C
			}
		})
	}
	loop(func() {
		var server peer.Peer
		_, err := p.client.Echo(deadline(t, 5*time.Second), &echov1.EchoRequest{}, grpc.Peer(&server))
		note(&server, err)
	})
	loop(func() {
		conn, err := p.gateway.NewClient("echo")
		if err != nil {
			note(nil, err)
			return
		}
		defer conn.Close()
		var server peer.Peer
		_, err = echov1.NewEchoServiceClient(conn).Echo(deadline(t, 5*time.Second), &echov1.EchoRequest{}, grpc.Peer(&server))
		note(&server, err)
	})

	before, _, err := consul.Agent().ConnectCARoots(nil)
	require.NoError(t, err)
	_, err = consul.Connect().CASetConfig(&consulapi.CAConfig{Provider: "consul", Config: map[string]any{
		"PrivateKey": newKey(t), "RootCert": "", "LeafCertTTL": "72h", "IntermediateCertTTL": "8760h",
	}}, nil)
	require.NoError(t, err)
	began := time.Now()
	require.Eventually(t, func() bool {
		roots, _, err := consul.Agent().ConnectCARoots(nil)
		return err == nil && roots.ActiveRootID != before.ActiveRootID && len(roots.Roots) == 2
	}, 10*time.Second, 20*time.Millisecond, "two roots, the new one active")
	require.Eventually(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(servers) == 2 && len(clients) == 2
	}, 90*time.Second, 50*time.Millisecond, "both ends have a certificate of the new root")
	took := time.Since(began)
	stop()
	load.Wait()
	require.Empty(t, failures)
	require.Equal(t, codes.OK, call(t, client(t, p.gateway, "echo")))
	t.Logf("%d calls, none failed; both ends had new certificates after %s", calls, took)
}

// certificateOf is the certificate of the other end of a connection.
func certificateOf(end *peer.Peer) string {
	state, ok := end.AuthInfo.(interface {
		GetSecurityValue() credentials.ChannelzSecurityValue
	})
	if !ok {
		return ""
	}
	value, ok := state.GetSecurityValue().(*credentials.TLSChannelzSecurityValue)
	if !ok {
		return ""
	}
	return string(value.RemoteCertificate)
}

func newKey(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

func TestNativeConfigErrors(t *testing.T) {
	consul, err := consulapi.NewClient(consulapi.DefaultConfig())
	require.NoError(t, err)
	for field, cfg := range map[string]mesh.NativeConfig{
		"Consul":      {Service: "echo", Environment: "test"},
		"Service":     {Consul: consul, Environment: "test"},
		"Environment": {Consul: consul, Service: "echo"},
	} {
		_, err := mesh.Native(context.Background(), cfg)
		require.ErrorContains(t, err, "NativeConfig."+field)
	}
}
