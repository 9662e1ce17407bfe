package discovery_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/consultest"
	"github.com/marquee-ads/marquee/platform/discovery"
)

const (
	patience   = 15 * time.Second
	healthPath = "/v1/health/"
)

// quick are options with which faults are noticed in test time.
func quick() discovery.Options {
	return discovery.Options{
		WaitTime: time.Second, Timeout: time.Second, MinInterval: 10 * time.Millisecond,
		RetryMin: 20 * time.Millisecond, RetryMax: 100 * time.Millisecond, Settle: -1, Linger: -1,
	}
}

func newConsul(t testing.TB, client *api.Client, opts discovery.Options) *discovery.Consul {
	t.Helper()
	c := discovery.New(client, opts)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// put registers an instance that is healthy from the start. Its id is its service
// and port.
func put(t testing.TB, client *api.Client, service string, port int, tags ...string) string {
	t.Helper()
	id := fmt.Sprintf("%s-%d", service, port)
	require.NoError(t, client.Agent().ServiceRegister(&api.AgentServiceRegistration{
		ID: id, Name: service, Address: "127.0.0.1", Port: port, Tags: tags,
	}))
	return id
}

func remove(t testing.TB, client *api.Client, id string) {
	t.Helper()
	require.NoError(t, client.Agent().ServiceDeregister(id))
}

type delivery struct {
	addresses string // comma separated
	err       error
}

// follower records what a watch delivers.
type follower struct {
	deliveries chan delivery
	stop       func()
}

func follow(t testing.TB, c *discovery.Consul, q discovery.Query) *follower {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f := &follower{deliveries: make(chan delivery, 1000)}
	var running sync.WaitGroup
	running.Go(func() {
		c.Watch(ctx, q, func(list []discovery.Instance, err error) {
			var addresses []string
			for _, instance := range list {
				addresses = append(addresses, strings.TrimPrefix(instance.Address, "127.0.0.1:"))
			}
			f.deliveries <- delivery{strings.Join(addresses, ","), err}
		})
	})
	f.stop = func() { cancel(); running.Wait() }
	t.Cleanup(f.stop)
	return f
}

func (f *follower) next(t testing.TB) delivery {
	t.Helper()
	select {
	case d := <-f.deliveries:
		return d
	case <-time.After(patience):
		require.FailNow(t, "nothing was delivered", "within %s", patience)
		return delivery{}
	}
}

// expect demands that the very next delivery is this list.
func (f *follower) expect(t testing.TB, addresses string) {
	t.Helper()
	d := f.next(t)
	require.NoError(t, d.err)
	require.Equal(t, addresses, d.addresses)
}

func (f *follower) expectError(t testing.TB) error {
	t.Helper()
	d := f.next(t)
	require.Error(t, d.err)
	return d.err
}

// quiet demands that nothing has been delivered yet; the caller has waited for
// what would have delivered it.
func (f *follower) quiet(t testing.TB) {
	t.Helper()
	select {
	case d := <-f.deliveries:
		require.Fail(t, "unexpected delivery", "%+v", d)
	default:
	}
}

// moreRequests waits until n more requests than now have reached the proxy.
func moreRequests(t testing.TB, proxy *consultest.Proxy, prefix string, n int) {
	t.Helper()
	want := proxy.Count(prefix) + n
	require.Eventually(t, func() bool { return proxy.Count(prefix) >= want }, patience, 2*time.Millisecond,
		"fewer than %d more requests for %s", n, prefix)
}

func TestWatch(t *testing.T) {
	agent := consultest.Start(t)
	client := agent.Client

	t.Run("a service that does not exist yet, and its last instance leaving", func(t *testing.T) {
		f := follow(t, newConsul(t, client, quick()), discovery.Query{Service: "late"})
		f.expect(t, "")
		id := put(t, client, "late", 1)
		f.expect(t, "1")
		remove(t, client, id)
		f.expect(t, "")
		put(t, client, "late", 2)
		f.expect(t, "2")
	})

	t.Run("only healthy instances with all tags", func(t *testing.T) {
		put(t, client, "tagged", 1, "a")
		put(t, client, "tagged", 2, "a", "b")
		put(t, client, "tagged", 3, "b")
		require.NoError(t, client.Agent().ServiceRegister(&api.AgentServiceRegistration{
			ID: "sick", Name: "tagged", Address: "127.0.0.1", Port: 4, Tags: []string{"a", "b"},
			Check: &api.AgentServiceCheck{CheckID: "sick", TTL: "1m"},
		}))
		f := follow(t, newConsul(t, client, quick()), discovery.Query{Service: "tagged", Tags: []string{"b", "a"}})
		f.expect(t, "2")
		require.NoError(t, client.Agent().UpdateTTL("sick", "", api.HealthPassing))
		f.expect(t, "2,4")
		require.NoError(t, client.Agent().UpdateTTL("sick", "", api.HealthCritical))
		f.expect(t, "2")
	})

	t.Run("connect finds native instances only", func(t *testing.T) {
		put(t, client, "native", 1)
		require.NoError(t, client.Agent().ServiceRegister(&api.AgentServiceRegistration{
			ID: "native-2", Name: "native", Address: "127.0.0.1", Port: 2,
			Connect: &api.AgentServiceConnect{Native: true},
		}))
		c := newConsul(t, client, quick())
		follow(t, c, discovery.Query{Service: "native"}).expect(t, "1,2")
		follow(t, c, discovery.Query{Service: "native", Connect: true}).expect(t, "2")
	})

	// Consul's own parameter for tags has no effect there.
	t.Run("connect finds instances with all tags only", func(t *testing.T) {
		for port, tags := range [][]string{{"a"}, {"a", "b"}, {"b"}, {}} {
			require.NoError(t, client.Agent().ServiceRegister(&api.AgentServiceRegistration{
				ID: fmt.Sprintf("mesh-%d", port), Name: "mesh", Address: "127.0.0.1", Port: port + 1, Tags: tags,
				Connect: &api.AgentServiceConnect{Native: true},
			}))
			// Behind a sidecar, which has its service's tags.
			require.NoError(t, client.Agent().ServiceRegister(&api.AgentServiceRegistration{
				ID: fmt.Sprintf("beside-%d", port), Name: "beside", Address: "127.0.0.1", Port: port + 11, Tags: tags,
				Connect: &api.AgentServiceConnect{SidecarService: &api.AgentServiceRegistration{
					Port: port + 21, Check: &api.AgentServiceCheck{TTL: "1m", Status: api.HealthPassing},
				}},
			}))
		}
		c := newConsul(t, client, quick())
		follow(t, c, discovery.Query{Service: "mesh", Connect: true}).expect(t, "1,2,3,4")
		follow(t, c, discovery.Query{Service: "mesh", Connect: true, Tags: []string{"a"}}).expect(t, "1,2")
		follow(t, c, discovery.Query{Service: "mesh", Connect: true, Tags: []string{"a", "b"}}).expect(t, "2")
		follow(t, c, discovery.Query{Service: "mesh", Connect: true, Tags: []string{"nobody"}}).expect(t, "")
		follow(t, c, discovery.Query{Service: "beside", Connect: true}).expect(t, "21,22,23,24")
		follow(t, c, discovery.Query{Service: "beside", Connect: true, Tags: []string{"b"}}).expect(t, "22,23")
	})

	t.Run("an unchanged list is not delivered again", func(t *testing.T) {
		proxy := agent.Proxy()
		require.NoError(t, client.Agent().ServiceRegister(&api.AgentServiceRegistration{
			ID: "same-1", Name: "same", Address: "127.0.0.1", Port: 1,
			Check: &api.AgentServiceCheck{CheckID: "same-1", TTL: "1m", Status: api.HealthPassing},
		}))
		f := follow(t, newConsul(t, proxy.Client, quick()), discovery.Query{Service: "same"})
		f.expect(t, "1")
		// Another output of the check changes the answer and its index, but not
		// the list; waiting queries that time out change nothing at all.
		for range 3 {
			require.NoError(t, client.Agent().UpdateTTL("same-1", time.Now().String(), api.HealthPassing))
			moreRequests(t, proxy, healthPath, 1)
		}
		f.quiet(t)
		put(t, client, "same", 2)
		f.expect(t, "1,2")
	})

	t.Run("the first query failing", func(t *testing.T) {
		proxy := agent.Proxy()
		proxy.Fail(healthPath, 500)
		put(t, client, "first", 1)
		f := follow(t, newConsul(t, proxy.Client, quick()), discovery.Query{Service: "first"})
		require.ErrorContains(t, f.expectError(t), "ask consul for first: Unexpected response code: 500")
		proxy.Heal()
		d := f.next(t)
		for d.err != nil {
			d = f.next(t)
		}
		require.Equal(t, "1", d.addresses)
	})

	t.Run("the last good answer stands while queries fail", func(t *testing.T) {
		for name, breakIt := range map[string]func(*consultest.Proxy){
			"500": func(p *consultest.Proxy) { p.Fail(healthPath, 500) },
			"403": func(p *consultest.Proxy) { p.Fail(healthPath, 403) },
			"404": func(p *consultest.Proxy) { p.Fail(healthPath, 404) },
			"429": func(p *consultest.Proxy) { p.Fail(healthPath, 429) },
			"cut": func(p *consultest.Proxy) { p.Cut(healthPath) },
		} {
			proxy := agent.Proxy()
			service := "keep-" + name
			put(t, client, service, 1)
			f := follow(t, newConsul(t, proxy.Client, quick()), discovery.Query{Service: service})
			f.expect(t, "1")
			breakIt(proxy)
			moreRequests(t, proxy, healthPath, 3)
			remove(t, client, service+"-1")
			put(t, client, service, 2)
			moreRequests(t, proxy, healthPath, 3)
			f.quiet(t)
			proxy.Heal()
			f.expect(t, "2")
		}
	})

	t.Run("the index going backwards", func(t *testing.T) {
		proxy := agent.Proxy()
		proxy.OffsetIndex(1_000_000)
		put(t, client, "back", 1)
		f := follow(t, newConsul(t, proxy.Client, quick()), discovery.Query{Service: "back"})
		f.expect(t, "1")
		moreRequests(t, proxy, healthPath, 1) // waits with the large index
		proxy.OffsetIndex(0)
		put(t, client, "back", 2)
		f.expect(t, "1,2")
		var indexes []string
		require.Eventually(t, func() bool {
			indexes = nil
			for _, r := range proxy.Requests(healthPath) {
				indexes = append(indexes, r.Query.Get("index"))
			}
			last := indexes[len(indexes)-1]
			return last != "" && len(last) < 6
		}, patience, 5*time.Millisecond, "never waits with the small index")
		require.Contains(t, indexes[1:], "", "starts over without an index")
		put(t, client, "back", 3)
		f.expect(t, "1,2,3")
	})

	t.Run("an index of zero does not spin", func(t *testing.T) {
		proxy := agent.Proxy()
		proxy.ZeroIndex(true)
		opts := quick()
		opts.MinInterval = 100 * time.Millisecond
		f := follow(t, newConsul(t, proxy.Client, opts), discovery.Query{Service: "zero"})
		f.expect(t, "")
		start, before := time.Now(), proxy.Count(healthPath)
		put(t, client, "zero", 1)
		f.expect(t, "1")
		moreRequests(t, proxy, healthPath, 5)
		queries := proxy.Count(healthPath) - before
		require.LessOrEqual(t, queries, int(time.Since(start)/opts.MinInterval)+2)
	})

	t.Run("a hung query", func(t *testing.T) {
		proxy := agent.Proxy()
		put(t, client, "hung", 1)
		f := follow(t, newConsul(t, proxy.Client, quick()), discovery.Query{Service: "hung"})
		f.expect(t, "1")
		proxy.Hang(healthPath)
		put(t, client, "hung", 2)
		moreRequests(t, proxy, healthPath, 2) // gives up and asks again
		f.quiet(t)
		proxy.Heal()
		f.expect(t, "1,2")
	})

	t.Run("an answer that is too old is asked of the leader", func(t *testing.T) {
		proxy := agent.Proxy()
		put(t, client, "stale", 1)
		f := follow(t, newConsul(t, proxy.Client, quick()), discovery.Query{Service: "stale"})
		f.expect(t, "1")
		proxy.Stale(time.Minute)
		put(t, client, "stale", 2)
		f.expect(t, "1,2")
		asked := 0
		for _, r := range proxy.Requests(healthPath) {
			if !r.Query.Has("stale") {
				asked++
			}
		}
		require.Positive(t, asked, "the leader was never asked")
	})

	t.Run("watches of the same query share one", func(t *testing.T) {
		proxy := agent.Proxy()
		opts := quick()
		opts.WaitTime = time.Minute
		c := newConsul(t, proxy.Client, opts)
		var followers []*follower
		for i := range 100 {
			tags := []string{"x", "y"}
			if i%2 == 1 {
				tags = []string{"y", "x", "x"}
			}
			followers = append(followers, follow(t, c, discovery.Query{Service: "shared", Tags: tags}))
		}
		for _, f := range followers {
			f.expect(t, "")
		}
		put(t, client, "shared", 1, "x", "y")
		for _, f := range followers {
			f.expect(t, "1")
		}
		// One without waiting, one that the change ended, one that waits.
		require.LessOrEqual(t, proxy.Count(healthPath), 3)

		other := follow(t, c, discovery.Query{Service: "shared", Tags: []string{"x"}})
		other.expect(t, "1")
		require.LessOrEqual(t, proxy.Count(healthPath), 5)
	})

	t.Run("a slow reader holds nobody up", func(t *testing.T) {
		c := newConsul(t, client, quick())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		release := make(chan struct{})
		var got []int
		var slow sync.WaitGroup
		slow.Go(func() {
			c.Watch(ctx, discovery.Query{Service: "slow"}, func(list []discovery.Instance, _ error) {
				<-release
				got = append(got, len(list))
				if len(list) == 3 {
					cancel()
				}
			})
		})
		f := follow(t, c, discovery.Query{Service: "slow"})
		f.expect(t, "")
		put(t, client, "slow", 1)
		f.expect(t, "1")
		put(t, client, "slow", 2)
		f.expect(t, "1,2")
		put(t, client, "slow", 3)
		f.expect(t, "1,2,3")
		close(release)
		slow.Wait()
		require.Equal(t, []int{0, 3}, got, "changes that were missed come as one")
	})

	t.Run("a watch outlives its readers for the grace period", func(t *testing.T) {
		proxy := agent.Proxy()
		put(t, client, "grace", 1)
		opts := quick()
		opts.Grace = 300 * time.Millisecond
		c := newConsul(t, proxy.Client, opts)
		f := follow(t, c, discovery.Query{Service: "grace"})
		f.expect(t, "1")
		f.stop()

		proxy.Hang(healthPath)
		again := follow(t, c, discovery.Query{Service: "grace"})
		again.expect(t, "1") // from memory: nobody answers
		proxy.Heal()
		put(t, client, "grace", 2)
		again.expect(t, "1,2")
		again.stop()
		require.Eventually(t, func() bool { return running(t, "discovery.(*feed") == 0 }, patience, 5*time.Millisecond,
			"the query goes on after the grace period")

		put(t, client, "grace", 3)
		follow(t, c, discovery.Query{Service: "grace"}).expect(t, "1,2,3")
	})

	t.Run("a service that flaps costs a bounded number of queries", func(t *testing.T) {
		proxy := agent.Proxy()
		opts := quick()
		opts.MinInterval = 100 * time.Millisecond
		f := follow(t, newConsul(t, proxy.Client, opts), discovery.Query{Service: "flap"})
		f.expect(t, "")
		start := time.Now()
		for port := range 100 {
			put(t, client, "flap", port+1)
		}
		require.Eventually(t, func() bool {
			d := f.next(t)
			return strings.Count(d.addresses, ",") == 99
		}, patience, time.Microsecond)
		require.LessOrEqual(t, proxy.Count(healthPath), int(time.Since(start)/opts.MinInterval)+3)
	})

	t.Run("closed", func(t *testing.T) {
		c := discovery.New(client, quick())
		put(t, client, "closed", 1)
		f := follow(t, c, discovery.Query{Service: "closed"})
		f.expect(t, "1")
		require.NoError(t, c.Close())
		require.NoError(t, c.Close())
		require.ErrorIs(t, follow(t, c, discovery.Query{Service: "closed"}).expectError(t), discovery.ErrClosed)
		f.quiet(t)
	})
}

func TestWatchServices(t *testing.T) {
	agent := consultest.Start(t)
	client := agent.Client
	c := newConsul(t, client, quick())

	got := make(chan string, 100)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		c.WatchServices(ctx, []string{"grpc", "env-test"}, func(names []string, err error) {
			if err != nil {
				got <- err.Error()
				return
			}
			got <- strings.Join(names, ",")
		})
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	expect := func(want string) {
		t.Helper()
		select {
		case names := <-got:
			require.Equal(t, want, names)
		case <-time.After(patience):
			require.Fail(t, "nothing was delivered")
		}
	}

	expect("")
	put(t, client, "order", 1, "env-production", "grpc")
	put(t, client, "order", 2, "env-test")
	account := put(t, client, "account", 1, "env-test", "grpc")
	expect("account")
	put(t, client, "account", 2, "env-test", "grpc", "more") // changes nothing
	require.NoError(t, client.Agent().ServiceRegister(&api.AgentServiceRegistration{
		Kind: api.ServiceKindConnectProxy, ID: "proxy", Name: "account-sidecar-proxy", Port: 3,
		Tags: []string{"env-test", "grpc"}, Proxy: &api.AgentServiceConnectProxyConfig{DestinationServiceName: "account"},
	}))
	put(t, client, "order", 3, "env-test", "grpc")
	expect("account,order")
	remove(t, client, account)
	remove(t, client, "account-2")
	expect("order")
}

func TestWatchAcrossAgentRestarts(t *testing.T) {
	agent := consultest.Start(t)
	// A query for an index that no longer exists would wait longer than the test.
	opts := quick()
	opts.WaitTime = time.Minute
	f := follow(t, newConsul(t, agent.Client, opts), discovery.Query{Service: "account"})
	f.expect(t, "")
	// A large index, which the agent will know nothing of once it is wiped.
	for i := range 200 {
		_, err := agent.Client.KV().Put(&api.KVPair{Key: fmt.Sprint(i)}, nil)
		require.NoError(t, err)
	}
	put(t, agent.Client, "account", 1)
	f.expect(t, "1")

	agent.Kill()
	agent.Restart()
	f.quiet(t)
	put(t, agent.Client, "account", 2)
	f.expect(t, "1,2")

	agent.Kill()
	require.NoError(t, os.RemoveAll(filepath.Join(agent.Dir, "data")))
	agent.Restart()
	f.expect(t, "")
	put(t, agent.Client, "account", 3)
	f.expect(t, "3")
}

// An agent that has just come back calls everything unhealthy for a moment.
func TestAgentThatComesBackTakesNothingAwayAtOnce(t *testing.T) {
	agent := consultest.Start(t)
	proxy := agent.Proxy()
	opts := quick()
	opts.Settle = 2 * time.Second
	put(t, agent.Client, "account", 1)
	second := put(t, agent.Client, "account", 2)
	f := follow(t, newConsul(t, proxy.Client, opts), discovery.Query{Service: "account"})
	f.expect(t, "1,2")

	t.Run("WhatReturnsInTimeIsNotMissed", func(t *testing.T) {
		proxy.Cut("/")
		moreRequests(t, proxy, healthPath, 2)
		remove(t, agent.Client, second)
		proxy.Heal()
		moreRequests(t, proxy, healthPath, 2) // one has been answered
		put(t, agent.Client, "account", 2)
		moreRequests(t, proxy, healthPath, 3)
		f.quiet(t)
	})
	t.Run("WhatIsNewIsThereAtOnce", func(t *testing.T) {
		proxy.Cut("/")
		moreRequests(t, proxy, healthPath, 2)
		remove(t, agent.Client, second)
		put(t, agent.Client, "account", 3)
		proxy.Heal()
		healed := time.Now()
		f.expect(t, "1,2,3")
		require.Less(t, time.Since(healed), opts.Settle)
		f.expect(t, "1,3")
		require.GreaterOrEqual(t, time.Since(healed), opts.Settle-100*time.Millisecond, "it was gone before the agent had settled")
	})
	t.Run("OtherwiseAtOnce", func(t *testing.T) {
		began := time.Now()
		remove(t, agent.Client, "account-3")
		f.expect(t, "1")
		require.Less(t, time.Since(began), opts.Settle)
	})
}

// An answer that ACLs emptied must not take the instances away.
func TestWatchWithoutPermission(t *testing.T) {
	agent := consultest.Start(t, consultest.WithACL())
	put(t, agent.Client, "account", 1)
	token, _, err := agent.Client.ACL().TokenCreate(&api.ACLToken{}, nil)
	require.NoError(t, err)
	config := api.DefaultConfig()
	config.Address, config.Token = agent.Address, token.SecretID
	weak, err := api.NewClient(config)
	require.NoError(t, err)

	f := follow(t, newConsul(t, weak, quick()), discovery.Query{Service: "account"})
	require.ErrorContains(t, f.expectError(t), "the token may not read it")

	_, _, err = agent.Client.ACL().PolicyCreate(&api.ACLPolicy{
		Name: "read", Rules: `service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }`,
	}, nil)
	require.NoError(t, err)
	token.Policies = []*api.ACLLink{{Name: "read"}}
	_, _, err = agent.Client.ACL().TokenUpdate(token, nil)
	require.NoError(t, err)
	d := f.next(t)
	for d.err != nil {
		d = f.next(t)
	}
	require.Equal(t, "1", d.addresses)

	token.Policies = nil
	_, _, err = agent.Client.ACL().TokenUpdate(token, nil)
	require.NoError(t, err)
	put(t, agent.Client, "account", 2)
	token.Policies = []*api.ACLLink{{Name: "read"}}
	_, _, err = agent.Client.ACL().TokenUpdate(token, nil)
	require.NoError(t, err)
	f.expect(t, "1,2")
}

func TestNoGoroutineIsLeft(t *testing.T) {
	agent := consultest.Start(t)
	c := discovery.New(agent.Client, quick())
	for i := range 20 {
		f := follow(t, c, discovery.Query{Service: fmt.Sprint("service-", i%10)})
		f.expect(t, "")
		if i%2 == 0 {
			f.stop()
		}
		defer f.stop()
	}
	require.Equal(t, 10, running(t, "discovery.(*feed"))
	require.Equal(t, 10, running(t, "discovery.watch["))
	require.NoError(t, c.Close())
	require.Zero(t, running(t, "discovery.(*feed"), "Close waits for its queries")
}

// running counts the goroutines that have a function in their stack.
func running(t testing.TB, function string) int {
	t.Helper()
	stacks := make([]byte, 8<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	count := 0
	for _, stack := range strings.Split(string(stacks), "\n\n") {
		if strings.Contains(stack, function) {
			count++
		}
	}
	return count
}
