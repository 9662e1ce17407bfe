package gateway_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
	"github.com/marquee-ads/marquee/services/gateway"
)

// from dials from one of this machine's addresses.
func from(address string) *net.Dialer {
	return &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: patience}
}

// hold opens connections that stay open until the test closes them.
func hold(t *testing.T, address, to string, count int) []net.Conn {
	t.Helper()
	var held []net.Conn
	for range count {
		conn, err := from(address).DialContext(t.Context(), "tcp", to)
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		held = append(held, conn)
	}
	return held
}

// call makes a call at each door over a connection of its own.
func call(t *testing.T, gw *bed, address string) (*http.Response, string, error) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: from(address).DialContext}, Timeout: patience}
	defer client.CloseIdleConnections()
	response, err := client.Post(gw.url+"/v1/echo", "application/json", strings.NewReader(`{"text":"x"}`))
	require.NoError(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)

	conn, err := grpc.NewClient(gw.GRPCAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, to string) (net.Conn, error) {
			return from(address).DialContext(ctx, "tcp", to)
		}))
	require.NoError(t, err)
	defer conn.Close()
	_, err = echov1.NewEchoServiceClient(conn).Echo(t.Context(), &echov1.EchoRequest{Text: "x"})
	return response, string(body), err
}

func TestTooManyConnections(t *testing.T) {
	gw := startOne(t, startEcho(t), func(c *gateway.Config) {
		c.MaxConnections, c.MaxConnectionsPerAddress = 8, 4
	})
	served := func(address string) {
		t.Helper()
		soon(t, "served", func() bool {
			response, _, err := call(t, gw, address)
			return response.StatusCode == http.StatusOK && err == nil
		})
	}
	refused := func(address, limit string) {
		t.Helper()
		before := gw.metric(t, refusals, limit)
		response, body, err := call(t, gw, address)
		require.Equal(t, http.StatusTooManyRequests, response.StatusCode)
		require.Equal(t, "1", response.Header.Get("Retry-After"))
		require.True(t, response.Close)
		var details struct{ Reason, Detail string }
		require.NoError(t, json.Unmarshal([]byte(body), &details), body)
		require.Equal(t, "TOO_MANY_CONNECTIONS", details.Reason)
		require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)
		// One of them is HTTP's. A client that were told in HTTP/2 (GOAWAY) would
		// take the connection for good and come again at once, a thousand times.
		require.InDelta(t, before+2, gw.metric(t, refusals, limit), 1)
	}
	http, grpc := gw.HTTPAddr().String(), gw.GRPCAddr().String()

	one := append(hold(t, "127.2.0.1", http, 2), hold(t, "127.2.0.1", grpc, 2)...)
	soon(t, "four connections", func() bool { return gw.connections(t) == 4 })
	refused("127.2.0.1", "address")
	served("127.2.0.2")
	soon(t, "four connections", func() bool { return gw.connections(t) == 4 })

	two := hold(t, "127.2.0.2", http, 4)
	soon(t, "eight connections", func() bool { return gw.connections(t) == 8 })
	refused("127.2.0.3", "total")

	for _, conn := range two {
		conn.Close()
	}
	served("127.2.0.3")
	for _, conn := range one {
		conn.Close()
	}
	served("127.2.0.1")
	soon(t, "no connection", func() bool { return gw.connections(t) == 0 })
}

// Behind a load balancer everybody comes from its address.
func TestBehindALoadBalancerOneAddressMayHaveAll(t *testing.T) {
	gw := startOne(t, startEcho(t), func(c *gateway.Config) {
		c.MaxConnections, c.MaxConnectionsPerAddress, c.BehindTLS = 8, 1, true
	})
	hold(t, "127.2.0.1", gw.HTTPAddr().String(), 5)
	soon(t, "five connections", func() bool { return gw.connections(t) == 5 })
	response, body, err := call(t, gw, "127.2.0.1")
	require.Equal(t, http.StatusOK, response.StatusCode, body)
	require.NoError(t, err)
}

// Displays have a bound of their own: many are behind one address, and what is open at
// the other doors does not count.
func TestDisplaysOfOneAddress(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	cfg, r := defaults(), newRegistry()
	cfg.MaxConnectionsPerAddress, cfg.DeviceListen, cfg.MaxDevices, cfg.MaxDevicesPerAddress = 1, "127.0.0.1:0", 10, 3
	around := surroundings(t, r)
	around.DialPort = func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", listener.Addr().String())
	}
	gw := startIn(t, r, cfg, around)
	hold(t, "127.2.0.1", gw.HTTPAddr().String(), 1)
	arrived := make(chan net.Conn, 10)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			arrived <- conn
		}
	}()
	hold(t, "127.2.0.1", gw.DeviceAddr().String(), 3)
	for range 3 {
		conn := receive(t, arrived)
		defer conn.Close()
	}
	tooMany := hold(t, "127.2.0.1", gw.DeviceAddr().String(), 1)[0]
	require.NoError(t, tooMany.SetReadDeadline(time.Now().Add(patience)))
	_, err = tooMany.Read(make([]byte, 1))
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "it is let in")
	hold(t, "127.2.0.2", gw.DeviceAddr().String(), 1)
	receive(t, arrived).Close()
}

// A call whose message does not come ends with its deadline, which it has though
// its caller set none.
func TestHalfACallIsAnswered(t *testing.T) {
	gw := startOne(t, startEcho(t), func(c *gateway.Config) { c.DefaultTimeout = 100 * time.Millisecond })
	stream, err := gw.conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true}, echov1.EchoService_Echo_FullMethodName)
	require.NoError(t, err)
	err = stream.RecvMsg(&echov1.EchoResponse{})
	require.Equal(t, codes.DeadlineExceeded, status.Code(err), "%v", err)
}

// Whoever says nothing is not waited for.
func TestMuteConnectionsAreClosed(t *testing.T) {
	t.Parallel()
	gw := startOne(t, startEcho(t))
	held := append(hold(t, "127.2.0.1", gw.HTTPAddr().String(), 2), hold(t, "127.2.0.1", gw.GRPCAddr().String(), 2)...)
	for _, conn := range held {
		// It takes 5 s at either door.
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
		_, err := io.Copy(io.Discard, conn)
		require.NoError(t, err, "it ends, and not by our deadline")
	}
	soon(t, "no connection", func() bool { return gw.connections(t) == 0 })
}

const refusals = "marquee_gateway_connections_refused_total"

// connections is how many are open.
func (b *bed) connections(t testing.TB) int { return b.metric(t, "marquee_gateway_connections") }

// metric is the value of a gauge or counter with these values of its labels.
func (b *bed) metric(t testing.TB, name string, labels ...string) int {
	t.Helper()
	families, err := b.metrics.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			var values []string
			for _, label := range metric.GetLabel() {
				values = append(values, label.GetValue())
			}
			if family.GetName() == name && slices.Equal(values, labels) {
				return int(metric.GetGauge().GetValue() + metric.GetCounter().GetValue())
			}
		}
	}
	return 0
}
