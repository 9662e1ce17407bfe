package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/scenario"
)

const (
	nats = "nats"
	// natsStorage is the service in Consul that is healthy when a server of it has
	// caught up, at an address of its machine alone.
	natsStorage = "nats-storage"
	// deviceStream is where the events of devices are.
	deviceStream = "DEVICE"
	// catchUpBound is how long a server of NATS that is back may take to have what
	// the others have.
	catchUpBound = 30 * time.Second
)

// events is how many events of devices there are, when a server of NATS on each
// client has all of them and says that it has caught up.
func (c *cluster) events(ctx context.Context) (int, error) {
	stored, err := c.askNATS(ctx, func(ctx context.Context, client *http.Client, monitor string) (int, error) {
		if _, err := getFrom(ctx, client, monitor+"/healthz"); err != nil {
			return 0, err
		}
		return storedAt(ctx, client, monitor)
	})
	if err != nil {
		return 0, err
	}
	for _, n := range stored {
		if len(stored) != clients || n != stored[dataNode] {
			return 0, fmt.Errorf("events by server of NATS: %v", stored)
		}
	}
	return stored[dataNode], nil
}

// askNATS asks each server of NATS for a number, by machine. The error is of those
// that have none, and of Consul's.
func (c *cluster) askNATS(ctx context.Context, ask func(context.Context, *http.Client, string) (int, error)) (map[string]int, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	entries, _, err := c.consul.Health().Service(natsStorage, "", false, (&consulapi.QueryOptions{RequireConsistent: true}).WithContext(ctx))
	if err != nil {
		return nil, err
	}
	stored := map[string]int{}
	var failed []error
	for _, e := range entries {
		i := slices.IndexFunc(c.machines, func(n *node) bool { return n.Name() == e.Node.Node })
		client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DialContext: c.machines[i].Dial, DisableKeepAlives: true}}
		n, err := ask(ctx, client, fmt.Sprintf("http://%s:%d", e.Service.Address, e.Service.Port))
		if err != nil {
			failed = append(failed, fmt.Errorf("NATS on %s: %w", e.Node.Node, err))
			continue
		}
		stored[e.Node.Node] = n
	}
	if len(stored) == 0 {
		failed = append(failed, errors.New("no server of NATS answers"))
	}
	return stored, errors.Join(failed...)
}

// Another version of NATS is rolled out. One server is away at a time, and has what
// the others have before the next is; what happens meanwhile is on all of them.
func testRollNATS(t *testing.T, ctx context.Context, c *cluster) {
	events, err := c.events(ctx)
	require.NoError(t, err)
	watching, stop := context.WithCancel(ctx)
	defer stop()
	fewest := make(chan int, 1)
	go func() {
		least := clients
		for watching.Err() == nil {
			stored, _ := c.askNATS(watching, storedAt) // who is away is not counted
			if watching.Err() == nil {
				least = min(least, len(stored))
			}
		}
		fewest <- least
	}()
	began := time.Now()
	deployed := make(chan error, 1)
	go func() {
		// The same with other resources is another version.
		_, err := c.Deploy(ctx, nats, map[string]string{"nats_cpu": "201"})
		deployed <- err
	}()
	events = c.publish(t, ctx, "rolled", events)
	require.NoError(t, <-deployed)
	stop()
	require.Equal(t, clients-1, <-fewest, "the fewest servers that were there with their events at a moment")
	caughtUp := c.caughtUp(t, ctx, events)
	t.Logf("three servers were replaced in %s, and had all of %d events %s after that", seconds(time.Since(began)), events, seconds(caughtUp))
}

// caughtUp waits until each server of NATS has so many events.
func (c *cluster) caughtUp(t *testing.T, ctx context.Context, events int) time.Duration {
	t.Helper()
	return scenario.Eventually(ctx, t, catchUpBound, "every server of NATS has all that happened", func() error {
		now, err := c.events(ctx)
		if err == nil && now != events {
			err = fmt.Errorf("each has %d, and there are %d", now, events)
		}
		return err
	})
}

// storedAt is how many events of devices a server has that keeps them together with
// the others.
func storedAt(ctx context.Context, client *http.Client, monitor string) (int, error) {
	text, err := getFrom(ctx, client, monitor+"/jsz?accounts=true&streams=true&config=true")
	if err != nil {
		return 0, err
	}
	var found struct {
		Accounts []struct {
			Streams []struct {
				Name   string
				Config struct {
					Replicas int `json:"num_replicas"`
				}
				State struct{ Messages int }
			} `json:"stream_detail"`
		} `json:"account_details"`
	}
	if err := json.Unmarshal(text, &found); err != nil {
		return 0, err
	}
	for _, account := range found.Accounts {
		for _, stream := range account.Streams {
			if stream.Name == deviceStream && stream.Config.Replicas == clients {
				return stream.State.Messages, nil
			}
		}
	}
	return 0, fmt.Errorf("it has no stream %s with %d replicas: %s", deviceStream, clients, text)
}

func getFrom(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", url, response.Status, text)
	}
	return text, err
}

// publish makes devices, each of which is an event, while something goes on, and
// returns how many events there are then to be.
func (c *cluster) publish(t *testing.T, ctx context.Context, while string, before int) (after int) {
	t.Helper()
	const more = 20
	for i := range more {
		require.NoError(t, c.seller.Call(ctx, http.MethodPost, c.seller.On(""), map[string]any{
			"requestId": fmt.Sprintf("%s-%06d", while, i), "settings": scenario.DisplaySettings(fmt.Sprintf("%s %d", while, i), slot),
		}, nil))
	}
	return before + more
}
