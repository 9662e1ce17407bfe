package stack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sort"
	"strconv"
	"time"

	consul "github.com/hashicorp/consul/api"
)

// Gateway is where one gateway instance listens.
type Gateway struct {
	ID   string `json:"id"`
	HTTP string `json:"http"` // host:port of the REST door
	GRPC string `json:"grpc"` // host:port of the gRPC door
	// Devices is host:port of the door for displays; empty without one.
	Devices string `json:"devices,omitempty"`
}

// Gateways are the healthy gateways in a stable order, and the index to pass in
// to wait, at most half a minute, for a change after this answer; 0 asks now.
func Gateways(ctx context.Context, c *consul.Client, index uint64) ([]Gateway, uint64, error) {
	q := (&consul.QueryOptions{WaitIndex: index, WaitTime: 30 * time.Second}).WithContext(ctx)
	entries, meta, err := c.Health().Service("gateway", "", true, q)
	if err != nil {
		return nil, 0, fmt.Errorf("finding the gateways: %w", err)
	}
	found := make([]Gateway, 0, len(entries))
	for _, entry := range entries {
		host := entry.Service.Address
		if host == "" {
			host = entry.Node.Address
		}
		found = append(found, Gateway{
			ID:      entry.Service.ID,
			HTTP:    net.JoinHostPort(host, strconv.Itoa(entry.Service.Port)),
			GRPC:    entry.Service.Meta["grpc"],
			Devices: entry.Service.Meta["devices"],
		})
	}
	sort.Slice(found, func(i, j int) bool { return found[i].ID < found[j].ID })
	return found, meta.LastIndex, nil
}

// WaitServed waits until a gateway answers GET path with 200, and returns that
// gateway. The error says what the last try got.
func (s *Stack) WaitServed(ctx context.Context, path string) (Gateway, error) {
	client := &http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	last := errors.New("no gateway is healthy")
	for {
		found, _, err := Gateways(ctx, s.target.Consul(), 0)
		if err != nil && ctx.Err() == nil {
			last = err
		}
		for _, g := range found {
			if last = get(ctx, client, "http://"+g.HTTP+path); last == nil {
				return g, nil
			}
		}
		timer := time.NewTimer(50 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return Gateway{}, fmt.Errorf("no request was served: %w (last: %w)", ctx.Err(), last)
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 4<<10))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %s", url, response.Status, body)
	}
	return nil
}
