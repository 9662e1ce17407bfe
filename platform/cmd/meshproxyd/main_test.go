package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/consultest"
	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/platform/freeport"
	"github.com/marquee-ads/marquee/platform/mesh"
	"github.com/marquee-ads/marquee/platform/service"
)

// lines is a server that answers each line with the line, and the end of its
// input with "bye".
func lines(t *testing.T, listener net.Listener) {
	t.Helper()
	var running sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			running.Go(func() {
				defer conn.Close()
				in := bufio.NewScanner(conn)
				for in.Scan() {
					if _, err := fmt.Fprintln(conn, in.Text()); err != nil {
						return
					}
				}
				fmt.Fprintln(conn, "bye")
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for _, conn := range open {
			conn.Close()
		}
		mu.Unlock()
		running.Wait()
	})
}

// proxied is a meshproxyd that runs in this process, with a mesh member beside
// it that dials it through Consul.
type proxied struct {
	agent   *consultest.Agent
	admin   string
	account mesh.Mesh
	stop    context.CancelFunc
	ended   chan error
}

func startProxy(t *testing.T, upstream string, edit func(*config)) *proxied {
	t.Helper()
	agent := consultest.Start(t)
	intend(t, agent.Client, consulapi.IntentionActionAllow)
	return startProxyOn(t, agent, upstream, edit)
}

func startProxyOn(t *testing.T, agent *consultest.Agent, upstream string, edit func(*config)) *proxied {
	t.Helper()
	cfg, err := service.Parse[config]("meshproxyd", []string{
		"--name=account-db", "--environment=test", "--consul-addr=" + agent.Address, "--register=always",
		"--upstream=" + upstream, "--upstream-wait=2s", "--drain-delay=0s", "--drain-timeout=2s", "--log-level=debug",
	}, io.Discard)
	require.NoError(t, err)
	if edit != nil {
		edit(&cfg)
	}
	listening := make(chan service.Addresses, 1)
	cfg.OnListening = func(a service.Addresses) { listening <- a }
	ctx, cancel := context.WithCancel(context.Background())
	p := &proxied{agent: agent, stop: cancel, ended: make(chan error, 1)}
	go func() { p.ended <- run(ctx, cfg) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-p.ended:
		case <-time.After(15 * time.Second):
			t.Error("meshproxyd does not end")
		}
	})
	select {
	case a := <-listening:
		p.admin = a.Admin
	case err := <-p.ended:
		p.ended <- err
		t.Fatalf("meshproxyd ended: %v", err)
	case <-time.After(15 * time.Second):
		t.Fatal("meshproxyd does not listen")
	}

	found := discovery.New(agent.Client, discovery.Options{})
	p.account, err = mesh.Native(context.Background(), mesh.NativeConfig{
		Consul: agent.Client, Service: "account", Environment: "test", Watcher: found,
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, p.account.Close())
		require.NoError(t, found.Close())
	})
	return p
}

func intend(t *testing.T, client *consulapi.Client, action consulapi.IntentionAction) {
	t.Helper()
	_, _, err := client.ConfigEntries().Set(&consulapi.ServiceIntentionsConfigEntry{
		Kind: consulapi.ServiceIntentions, Name: "account-db",
		Sources: []*consulapi.SourceIntention{{Name: "account", Action: action}, {Name: "account-db", Action: action}},
	}, nil)
	require.NoError(t, err)
}

func (p *proxied) dial(t *testing.T) (net.Conn, *bufio.Reader) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := p.account.DialContext(ctx, "account-db")
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	return conn, bufio.NewReader(conn)
}

func say(conn net.Conn, answers *bufio.Reader, line string) (string, error) {
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return "", err
	}
	return answers.ReadString('\n')
}

func (p *proxied) ready(t *testing.T) (bool, string) {
	t.Helper()
	res, err := http.Get("http://" + p.admin + "/readyz")
	require.NoError(t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode == http.StatusOK, string(body)
}

func (p *proxied) becomes(t *testing.T, ready bool) {
	t.Helper()
	require.Eventually(t, func() bool { is, _ := p.ready(t); return is == ready }, 15*time.Second, 20*time.Millisecond)
}

func tcpUpstream(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	lines(t, listener)
	return listener.Addr().String()
}

// TestSocketThatAppearsLater has a path longer than a socket address holds.
func TestSocketThatAppearsLater(t *testing.T) {
	folder := filepath.Join(t.TempDir(), strings.Repeat("a", 60), strings.Repeat("b", 60))
	path := filepath.Join(folder, ".s.PGSQL.5432")
	require.Greater(t, len(path), 108)
	p := startProxy(t, "unix:"+path, nil)
	require.Eventually(t, func() bool {
		_, body := p.ready(t)
		return strings.Contains(body, "no such file")
	}, 15*time.Second, 20*time.Millisecond, "it says what it waits for")
	ready, _ := p.ready(t)
	require.False(t, ready)

	require.NoError(t, os.MkdirAll(folder, 0o700))
	// Listening has the same limit; the test goes into the folder instead.
	t.Chdir(folder)
	listener, err := net.Listen("unix", ".s.PGSQL.5432")
	require.NoError(t, err)
	lines(t, listener)
	p.becomes(t, true)

	conn, answers := p.dial(t)
	got, err := say(conn, answers, "hello")
	require.NoError(t, err)
	require.Equal(t, "hello\n", got)

	// The end of what the client has to say reaches the server, and its last
	// words the client.
	require.NoError(t, conn.(interface{ CloseWrite() error }).CloseWrite())
	rest, err := io.ReadAll(answers)
	require.NoError(t, err)
	require.Equal(t, "bye\n", string(rest))
}

func TestDenyCloses(t *testing.T) {
	p := startProxy(t, tcpUpstream(t), nil)
	p.becomes(t, true)
	conn, answers := p.dial(t)
	_, err := say(conn, answers, "hello")
	require.NoError(t, err)
	began := time.Now()
	intend(t, p.agent.Client, consulapi.IntentionActionDeny)
	_, err = answers.ReadString('\n')
	require.Error(t, err)
	require.Less(t, time.Since(began), time.Second)
}

func TestUpstreamRestarts(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	p := startProxy(t, address, nil)
	p.becomes(t, true)
	require.NoError(t, listener.Close())

	// A connection that comes meanwhile is kept until the upstream is back.
	conn, answers := p.dial(t)
	_, err = fmt.Fprintln(conn, "hello")
	require.NoError(t, err)
	again, err := net.Listen("tcp", address)
	require.NoError(t, err)
	lines(t, again)
	got, err := answers.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "hello\n", got)
}

func TestTooManyConnections(t *testing.T) {
	p := startProxy(t, tcpUpstream(t), func(c *config) { c.MaxConnections = 2 })
	p.becomes(t, true)
	for range 2 {
		conn, answers := p.dial(t)
		_, err := say(conn, answers, "hello")
		require.NoError(t, err)
	}
	conn, answers := p.dial(t)
	_, err := say(conn, answers, "hello")
	require.Error(t, err)
}

// TestPeers has the server behind one instance reach the one behind another, by
// that one's name. Who may call the service does not get there.
func TestPeers(t *testing.T) {
	first := startProxy(t, tcpUpstream(t), func(c *config) {
		c.PeersListen, c.PeersUpstream, c.PeersName = "127.0.0.1:0", tcpUpstream(t), "first"
	})
	first.becomes(t, true)
	ports, err := freeport.Take(2)
	require.NoError(t, err)
	at := func(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
	second := startProxyOn(t, first.agent, tcpUpstream(t), func(c *config) {
		c.Peer = []string{at(ports[0]) + "=first", at(ports[1]) + "=third"}
	})
	second.becomes(t, true)
	ask := func(port int) (string, error) {
		conn, err := net.Dial("tcp", at(port))
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
		return say(conn, bufio.NewReader(conn), "hello")
	}
	got, err := ask(ports[0])
	require.NoError(t, err)
	require.Equal(t, "hello\n", got)
	_, err = ask(ports[1])
	require.Error(t, err, "no instance has this name")

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := first.account.DialPort(ctx, "account-db", peersPort)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	_, err = say(conn, bufio.NewReader(conn), "hello")
	require.Error(t, err, "somebody with an edge to the service got to where only its instances may")
}

// TestStop lets a connection finish within the drain timeout, and cuts it then.
func TestStop(t *testing.T) {
	t.Run("Finishes", func(t *testing.T) {
		p := startProxy(t, tcpUpstream(t), func(c *config) { c.DrainTimeout = 20 * time.Second })
		p.becomes(t, true)
		conn, answers := p.dial(t)
		_, err := say(conn, answers, "before")
		require.NoError(t, err)
		p.stop()
		require.Eventually(t, func() bool {
			entries, _, err := p.agent.Client.Health().Service("account-db", "", false, nil)
			return err == nil && len(entries) == 0
		}, 5*time.Second, 10*time.Millisecond, "it leaves Consul first")
		_, err = say(conn, answers, "while it drains")
		require.NoError(t, err)
		conn.Close()
		require.NoError(t, <-p.ended)
		p.ended <- nil
	})
	t.Run("IsCut", func(t *testing.T) {
		p := startProxy(t, tcpUpstream(t), func(c *config) { c.DrainTimeout = 200 * time.Millisecond })
		p.becomes(t, true)
		conn, answers := p.dial(t)
		_, err := say(conn, answers, "before")
		require.NoError(t, err)
		p.stop()
		_, err = answers.ReadString('\n')
		require.Error(t, err)
		require.NoError(t, <-p.ended)
		p.ended <- nil
	})
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]struct{ args, text string }{
		"NoUpstream":       {"", "--upstream"},
		"RelativeSocket":   {"--upstream=unix:pg.sock", "--upstream: \"unix:pg.sock\" is not an absolute path"},
		"UpstreamElswhere": {"--upstream=192.0.2.1:5432", "--upstream: \"192.0.2.1:5432\" is not on loopback"},
		"UpstreamName":     {"--upstream=localhost:5432", "not on loopback"},
		"UpstreamNoPort":   {"--upstream=127.0.0.1", "neither unix:/path nor host:port"},
		"NoConnections":    {"--upstream=127.0.0.1:1 --max-connections=0", "--max-connections"},
		"NegativeWait":     {"--upstream=127.0.0.1:1 --upstream-wait=-1s", "--upstream-wait"},
		"PeersUpstream":    {"--upstream=127.0.0.1:1 --peers-listen=127.0.0.1:0 --peers-name=first", "--peers-upstream"},
		"PeersName":        {"--upstream=127.0.0.1:1 --peers-listen=127.0.0.1:0 --peers-upstream=127.0.0.1:1", "--peers-name"},
		"PeerElsewhere":    {"--upstream=127.0.0.1:1 --peer=192.0.2.1:6222=first", "--peer: \"192.0.2.1:6222=first\" is not a loopback address"},
		"PeerWithoutName":  {"--upstream=127.0.0.1:1 --peer=127.0.0.1:6222", "--peer"},
		"Common":           {"--upstream=127.0.0.1:1 --name=Bad_Name", "--name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := service.Parse[config]("meshproxyd", strings.Fields(c.args), io.Discard)
			require.ErrorContains(t, err, c.text)
		})
	}
}
