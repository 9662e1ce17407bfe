package discovery

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"
	"github.com/hashicorp/go-hclog"
)

// ErrClosed is what a watch that starts after Close is told.
var ErrClosed = errors.New("discovery is closed")

// Options tune the queries. Every zero value is replaced by its default.
type Options struct {
	// WaitTime is how long a blocking query waits for a change, with 10 % jitter
	// (default 60 s). One idle watch costs the agent one query per WaitTime.
	WaitTime time.Duration
	// Timeout is how long an answer may take beyond the time the query waits
	// (default 10 s). A hung agent is noticed within WaitTime plus Timeout.
	Timeout time.Duration
	// MinInterval is the shortest time between two queries of one watch, so
	// that a service whose instances flap costs a bounded number (default
	// 100 ms).
	MinInterval time.Duration
	// RetryMin and RetryMax bound the exponential backoff after failed queries
	// (defaults 100 ms and 5 s).
	RetryMin time.Duration
	RetryMax time.Duration
	// Grace is how long a watch that nobody reads lives on, so that a connection
	// that leaves idle mode has its answer at once (default 5 min).
	Grace time.Duration
	// Settle is how long after the agent came back an answer may add to what was
	// known and take nothing away (default 5 s; negative: not at all). An agent
	// that has just started calls everything on its machine unhealthy until it
	// has checked it, and does not know what keeps itself registered until that
	// has registered again.
	Settle time.Duration
	// Linger is how long a connection keeps the last instances of a service when none
	// is healthy any more (default 5 s; negative: not at all). What makes all of them
	// unhealthy at once is often over before they are, and those that are gone are left
	// when their connections break.
	Linger time.Duration
	// Log receives one line when a watch starts failing and one when it works
	// again; nil logs nothing.
	Log hclog.Logger
}

func (o Options) withDefaults() Options {
	setDefault(&o.WaitTime, 60*time.Second)
	setDefault(&o.Timeout, 10*time.Second)
	setDefault(&o.MinInterval, 100*time.Millisecond)
	setDefault(&o.RetryMin, 100*time.Millisecond)
	setDefault(&o.RetryMax, 5*time.Second)
	setDefault(&o.Grace, 5*time.Minute)
	setDefault(&o.Settle, 5*time.Second)
	setDefault(&o.Linger, 5*time.Second)
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	return o
}

func setDefault(value *time.Duration, otherwise time.Duration) {
	if *value == 0 {
		*value = otherwise
	}
}

// Consul finds instances through one Consul agent. All watches of the same query
// share one blocking query, so a process should have one Consul and share it.
type Consul struct {
	client *api.Client
	opts   Options

	instances pool[[]Instance]
	services  pool[[]string]

	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup
}

var _ Watcher = (*Consul)(nil)

// New makes a Consul over a client. It asks the agent nothing until the first
// watch; Close ends it.
func New(client *api.Client, opts Options) *Consul {
	c := &Consul{client: client, opts: opts.withDefaults()}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// Close ends all queries and waits for them. Watches stay as they are and
// deliver nothing more.
func (c *Consul) Close() error {
	c.instances.close()
	c.services.close()
	c.cancel()
	c.running.Wait()
	return nil
}

// Watch calls update with the healthy instances of a query, first as soon as they
// are known and then whenever they change, until ctx ends; it then returns. A
// service without instances, or that does not exist, is an empty list. An error
// is delivered only as long as there has never been an answer; after that the
// last answer stands until the agent answers again. Instances are sorted by
// address, or in Consul's order when the query has Near; the slice is shared and
// must not be modified. update is called from one goroutine, which may take its
// time: what changes meanwhile is delivered as one change.
func (c *Consul) Watch(ctx context.Context, q Query, update func([]Instance, error)) {
	q = q.canonical()
	watch(ctx, c, &c.instances, q.key(), source[[]Instance]{
		name:  q.Service,
		fetch: func(opts *api.QueryOptions) ([]Instance, *api.QueryMeta, error) { return c.fetchInstances(q, opts) },
		equal: equalInstances,
		size:  func(list []Instance) int { return len(list) },
		merge: mergeInstances,
	}, update)
}

// WatchServices calls update with the names of the services that have an
// instance, healthy or not, which carries all tags, sorted; sidecar proxies are
// not services. When it is called follows the same rules as in Watch.
func (c *Consul) WatchServices(ctx context.Context, tags []string, update func([]string, error)) {
	tags = slices.Sorted(slices.Values(tags))
	filter := `ServiceKind != "connect-proxy"`
	if with := hasTags("ServiceTags", slices.Compact(tags)); with != "" {
		filter += " and " + with
	}
	watch(ctx, c, &c.services, filter, source[[]string]{
		name: "the list of services",
		fetch: func(opts *api.QueryOptions) ([]string, *api.QueryMeta, error) {
			opts.Filter = filter
			byName, meta, err := c.client.Catalog().Services(opts)
			if err != nil {
				return nil, nil, err
			}
			names := make([]string, 0, len(byName))
			for name := range byName {
				names = append(names, name)
			}
			slices.Sort(names)
			return names, meta, nil
		},
		equal: slices.Equal[[]string],
		size:  func(names []string) int { return len(names) },
		merge: func(known, answer []string) []string {
			return slices.Compact(slices.Sorted(slices.Values(slices.Concat(known, answer))))
		},
	}, update)
}

// resolveNow has the query asked again soon if it is waiting after a failure.
func (c *Consul) resolveNow(q Query) {
	c.instances.wake(q.canonical().key())
}

func (c *Consul) fetchInstances(q Query, opts *api.QueryOptions) ([]Instance, *api.QueryMeta, error) {
	opts.Datacenter, opts.Near = q.Datacenter, q.Near
	ask := c.client.Health().Service
	if q.Connect {
		ask = c.client.Health().Connect
	}
	// Not the parameter tag, which Consul leaves unread where it is asked for
	// Connect: it would have one environment dial another's instances.
	opts.Filter = hasTags("Service.Tags", q.Tags)
	entries, meta, err := ask(q.Service, "", true, opts)
	if err != nil {
		return nil, nil, err
	}
	return instancesOf(entries, q.Near == ""), meta, nil
}

// hasTags is Consul's filter for a list that contains all tags; empty for none.
func hasTags(list string, tags []string) string {
	conditions := make([]string, len(tags))
	for i, tag := range tags {
		conditions[i] = strconv.Quote(tag) + " in " + list
	}
	return strings.Join(conditions, " and ")
}

// canonical makes equal queries identical.
func (q Query) canonical() Query {
	q.Tags = slices.Compact(slices.Sorted(slices.Values(q.Tags)))
	return q
}

func (q Query) key() string {
	parts := append([]string{q.Service, q.Datacenter, q.Near, strconv.FormatBool(q.Connect)}, q.Tags...)
	for i, part := range parts {
		parts[i] = strconv.Quote(part)
	}
	return strings.Join(parts, ",")
}

// instancesOf turns Consul's entries into instances: one for each address, those
// without a port left out.
func instancesOf(entries []*api.ServiceEntry, sorted bool) []Instance {
	list := make([]Instance, 0, len(entries))
	for _, entry := range entries {
		host := entry.Service.Address
		if host == "" {
			host = entry.Node.Address
		}
		if host == "" || entry.Service.Port <= 0 {
			continue
		}
		list = append(list, Instance{
			ID:      entry.Service.ID,
			Address: net.JoinHostPort(host, strconv.Itoa(entry.Service.Port)),
			Node:    entry.Node.Node,
			Tags:    slices.Sorted(slices.Values(entry.Service.Tags)),
			Meta:    entry.Service.Meta,
		})
	}
	// Two registrations of one address would get twice its share; which of them
	// stands must not depend on the order of the answer.
	first := make(map[string]string, len(list))
	for _, instance := range list {
		if id, ok := first[instance.Address]; !ok || instance.ID < id {
			first[instance.Address] = instance.ID
		}
	}
	seen := make(map[string]bool, len(list))
	list = slices.DeleteFunc(list, func(instance Instance) bool {
		duplicate := first[instance.Address] != instance.ID || seen[instance.Address]
		seen[instance.Address] = seen[instance.Address] || !duplicate
		return duplicate
	})
	if sorted {
		sortInstances(list)
	}
	return list
}

func sortInstances(list []Instance) {
	slices.SortFunc(list, func(a, b Instance) int { return strings.Compare(a.Address, b.Address) })
}

// equalInstances ignores the order: with Near it follows measured round trips
// and would change all the time.
func equalInstances(a, b []Instance) bool {
	if len(a) != len(b) {
		return false
	}
	a, b = slices.Clone(a), slices.Clone(b)
	sortInstances(a)
	sortInstances(b)
	return slices.EqualFunc(a, b, Instance.equal)
}

// mergeInstances is the answer, and those known whose address is not in it.
func mergeInstances(known, answer []Instance) []Instance {
	merged := slices.Clone(answer)
	for _, instance := range known {
		if !slices.ContainsFunc(answer, func(i Instance) bool { return i.Address == instance.Address }) {
			merged = append(merged, instance)
		}
	}
	if len(merged) > len(answer) {
		sortInstances(merged)
	}
	return merged
}

// jitter is d, 10 % more or less, so that the queries of many processes that
// started together drift apart.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.9 + 0.2*rand.Float64()))
}
