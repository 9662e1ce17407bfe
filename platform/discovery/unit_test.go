package discovery

import (
	"math"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/attributes"
)

func TestNextIndex(t *testing.T) {
	for _, test := range []struct {
		name                  string
		asked, answered, next uint64
	}{
		{"first answer", 0, 7, 7},
		{"a change", 7, 9, 9},
		{"nothing changed", 7, 7, 7},
		{"went backwards", 9, 7, 0},
		{"went to zero", 9, 0, 0},
		{"zero from the start must not spin", 0, 0, 1},
		{"stays zero", 1, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			require.Equal(t, test.next, nextIndex(test.asked, test.answered))
		})
	}
}

func TestRetryDelay(t *testing.T) {
	f := &feed[[]string]{opts: Options{RetryMin: 100 * time.Millisecond, RetryMax: 5 * time.Second}}
	for failures, want := range map[int]time.Duration{
		1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 4: 800 * time.Millisecond,
		7: 5 * time.Second, 100: 5 * time.Second, math.MaxInt: 5 * time.Second,
	} {
		require.InDelta(t, want, f.retryDelay(failures), float64(want)/10, "after %d failures", failures)
	}
}

func entry(id, nodeAddress, address string, port int) *api.ServiceEntry {
	return &api.ServiceEntry{
		Node:    &api.Node{Node: "n", Address: nodeAddress},
		Service: &api.AgentService{ID: id, Address: address, Port: port},
	}
}

func TestInstancesOf(t *testing.T) {
	list := instancesOf([]*api.ServiceEntry{
		entry("c", "10.0.0.9", "", 80),
		entry("twice-b", "10.0.0.9", "10.0.0.1", 80),
		entry("twice-a", "10.0.0.9", "10.0.0.1", 80),
		entry("twice-a", "10.0.0.9", "10.0.0.1", 80),
		entry("v6", "10.0.0.9", "fd00::1", 80),
		entry("no port", "10.0.0.9", "10.0.0.2", 0),
		entry("no address", "", "", 80),
	}, true)
	var got [][2]string
	for _, instance := range list {
		got = append(got, [2]string{instance.ID, instance.Address})
	}
	require.Equal(t, [][2]string{
		{"twice-a", "10.0.0.1:80"}, {"c", "10.0.0.9:80"}, {"v6", "[fd00::1]:80"},
	}, got)
}

func TestEqualInstancesIgnoresOrder(t *testing.T) {
	a, b := Instance{ID: "a", Address: "1:1"}, Instance{ID: "b", Address: "2:2"}
	require.True(t, equalInstances([]Instance{a, b}, []Instance{b, a}))
	require.False(t, equalInstances([]Instance{a, b}, []Instance{a}))
	changed := b
	changed.Meta = map[string]string{"version": "2"}
	require.False(t, equalInstances([]Instance{a, b}, []Instance{a, changed}))
}

func TestParseTarget(t *testing.T) {
	for target, want := range map[string]Query{
		"consul:///account":                                    {Service: "account", Tags: []string{"env-test"}, Connect: true},
		"consul:///account?connect=false":                      {Service: "account", Tags: []string{"env-test"}},
		"consul:///account?tag=b&tag=a&tag=b":                  {Service: "account", Tags: []string{"a", "b", "env-test"}, Connect: true},
		"consul:///account?dc=dc2&near=_agent&connect=1":       {Service: "account", Tags: []string{"env-test"}, Datacenter: "dc2", Near: "_agent", Connect: true},
		"consul:///account?tag=env-production&connect=true":    {Service: "account", Tags: []string{"env-production", "env-test"}, Connect: true},
		"consul:account":                                       {Service: "account", Tags: []string{"env-test"}, Connect: true},
		"consul:///account-db.v2?tag=with%20space%26and":       {Service: "account-db.v2", Tags: []string{"env-test", "with space&and"}, Connect: true},
		"consul:///account?near=a.node.with-dots&connect=t":    {Service: "account", Tags: []string{"env-test"}, Near: "a.node.with-dots", Connect: true},
		"consul:///account?connect=false&dc=a&near=b&tag=grpc": {Service: "account", Tags: []string{"env-test", "grpc"}, Datacenter: "a", Near: "b"},
	} {
		parsed, err := url.Parse(target)
		require.NoError(t, err)
		got, err := parseTarget(*parsed, "test")
		require.NoError(t, err, target)
		require.Equal(t, want, got, target)
	}

	for target, problem := range map[string]string{
		"consul:///":                      `"" is not a service name`,
		"consul:///a/b":                   `"a/b" is not a service name`,
		"consul:///a%20b":                 `"a b" is not a service name`,
		"consul:///-a":                    `"-a" is not a service name`,
		"consul://account":                "three slashes",
		"consul://127.0.0.1:8500/account": "three slashes",
		"consul:///account?conect=false":  `"conect" is unknown`,
		"consul:///account?connect=maybe": `connect is true or false, not "maybe"`,
		"consul:///account?dc=a&dc=b":     `"dc" is given 2 times`,
		"consul:///account?tag=":          `"tag" has no value`,
		"consul:///account?tag=a;tag=b":   "malformed",
		"consul:///account#x":             "fragment",
	} {
		parsed, err := url.Parse(target)
		require.NoError(t, err)
		_, err = parseTarget(*parsed, "test")
		require.ErrorContains(t, err, problem, target)
		require.ErrorContains(t, err, "for example "+example, target)
	}

	parsed, err := url.Parse("consul:///account")
	require.NoError(t, err)
	_, err = parseTarget(*parsed, "")
	require.ErrorContains(t, err, "the environment is empty")
}

func TestStateOf(t *testing.T) {
	instance := Instance{ID: "a", Address: "127.0.0.1:1", Meta: map[string]string{"version": "1"}}
	before := stateOf([]Instance{instance})
	got, ok := InstanceFromEndpoint(before.Endpoints[0])
	require.True(t, ok)
	require.Equal(t, instance, got)

	instance.Meta = map[string]string{"version": "2"}
	after := stateOf([]Instance{instance})
	require.True(t, before.Endpoints[0].Addresses[0].Equal(after.Endpoints[0].Addresses[0]),
		"another version at the same address must not cost the connection")
	require.False(t, before.Endpoints[0].Attributes.Equal(after.Endpoints[0].Attributes))
	require.True(t, after.Endpoints[0].Attributes.Equal(attributes.New(instanceKey{}, instance)))
}

func TestRegistrationRefused(t *testing.T) {
	good := Registration{Service: "account", Environment: "test", Address: "127.0.0.1:80"}
	service, ttl, err := good.service()
	require.NoError(t, err)
	require.Equal(t, 10*time.Second, ttl)
	require.Equal(t, []string{"env-test"}, service.Tags)
	require.Regexp(t, `^account-.+-\d+-[0-9a-f]{8}$`, service.ID)
	other, _, err := good.service()
	require.NoError(t, err)
	require.NotEqual(t, service.ID, other.ID)

	for problem, spoil := range map[string]func(*Registration){
		`"" is not a service name`:      func(r *Registration) { r.Service = "" },
		"the environment is empty":      func(r *Registration) { r.Environment = "" },
		"not host:port":                 func(r *Registration) { r.Address = "127.0.0.1" },
		"not a port from 1 to 65535":    func(r *Registration) { r.Address = "127.0.0.1:0" },
		`nobody can dial the address`:   func(r *Registration) { r.Address = "0.0.0.0:80" },
		`nobody can dial the address "`: func(r *Registration) { r.Address = ":80" },
		"shorter than 1s":               func(r *Registration) { r.TTL = 999 * time.Millisecond },
	} {
		spoiled := good
		spoil(&spoiled)
		_, err := Register(t.Context(), nil, spoiled)
		require.ErrorContains(t, err, problem)
	}
}

func TestAdvertiseAddress(t *testing.T) {
	listen := func(s string) net.Addr {
		address, err := net.ResolveTCPAddr("tcp", s)
		require.NoError(t, err)
		return address
	}
	for _, test := range []struct {
		name, listen, advertise, registry, want string
	}{
		{"explicit", "0.0.0.0:80", "10.1.2.3:90", "", "10.1.2.3:90"},
		{"explicit host", "0.0.0.0:80", "web-1.example", "", "web-1.example:80"},
		{"explicit port", "127.0.0.1:80", ":90", "", "127.0.0.1:90"},
		{"explicit IPv6", "[::]:80", "fd00::1", "", "[fd00::1]:80"},
		{"explicit IPv6 and port", "[::]:80", "[fd00::1]:90", "", "[fd00::1]:90"},
		{"explicit port 0 is the listener's", "0.0.0.0:80", "10.1.2.3:0", "", "10.1.2.3:80"},
		{"bound to one address", "127.0.0.7:80", "", "", "127.0.0.7:80"},
		{"route to the registry", "0.0.0.0:80", "", "127.0.0.1:8500", "127.0.0.1:80"},
		{"route to a registry's URL", "[::]:80", "", "http://127.0.0.1:8500", "127.0.0.1:80"},
		{"route to a registry's URL without a port", "[::]:80", "", "http://127.0.0.1", "127.0.0.1:80"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := AdvertiseAddress(listen(test.listen), test.advertise, test.registry)
			require.NoError(t, err)
			require.Equal(t, test.want, got)
		})
	}
	for _, test := range []struct {
		name, listen, advertise, registry, problem string
	}{
		{"unspecified", "0.0.0.0:80", "0.0.0.0", "", "nobody can dial 0.0.0.0"},
		{"bad port", "0.0.0.0:80", "host:http", "", `"http" in "host:http" is not a port`},
		{"port too large", "0.0.0.0:80", "host:65536", "", "is not a port"},
		{"no port at all", "127.0.0.1:0", "", "", "has no port"},
		{"registry is a socket", "0.0.0.0:80", "", "unix:///run/consul.sock", "say which address"},
		{"registry is missing", "0.0.0.0:80", "", "", "not host:port"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := AdvertiseAddress(listen(test.listen), test.advertise, test.registry)
			require.ErrorContains(t, err, test.problem)
		})
	}
	_, err := AdvertiseAddress(&net.UnixAddr{Name: "/x"}, "10.0.0.1:80", "")
	require.ErrorContains(t, err, "not an IP and port")
}
