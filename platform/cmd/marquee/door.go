package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	consul "github.com/hashicorp/consul/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/marquee-ads/marquee/platform/stack"
)

// errNoGateway says that nobody is at the door.
var errNoGateway = errors.New("no gateway is healthy: marquee status shows why")

// door is a gRPC connection to all healthy gateways, one call to each in turn.
type door struct {
	*grpc.ClientConn
	stop    context.CancelFunc
	watcher sync.WaitGroup
}

// openDoor connects to the gateways and follows them as they come and go.
func openDoor(ctx context.Context, c *consul.Client) (*door, error) {
	found, index, err := stack.Gateways(ctx, c, 0)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, errNoGateway
	}
	addresses := manual.NewBuilderWithScheme("gateways")
	addresses.InitialState(resolverState(found))
	conn, err := grpc.NewClient("gateways:///gateway",
		grpc.WithResolvers(addresses),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"round_robin":{}}]}`),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
		// A stream that is silent notices that its gateway's machine is gone. Gateways
		// take a ping every 10 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 15 * time.Second, Timeout: 5 * time.Second}),
	)
	if err != nil {
		return nil, fmt.Errorf("connecting to the gateways: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	d := &door{ClientConn: conn, stop: stop}
	d.watcher.Go(func() {
		for ctx.Err() == nil {
			found, next, err := stack.Gateways(ctx, c, index)
			if err != nil || next < index {
				// The agent is away or has started afresh: ask anew, slowly.
				index = 0
				select {
				case <-ctx.Done():
				case <-time.After(time.Second):
				}
				continue
			}
			if next != index && len(found) > 0 {
				addresses.UpdateState(resolverState(found))
			}
			index = next
		}
	})
	return d, nil
}

// Close ends the watch and the connection.
func (d *door) Close() error {
	d.stop()
	d.watcher.Wait()
	return d.ClientConn.Close()
}

func resolverState(found []stack.Gateway) resolver.State {
	var state resolver.State
	for _, g := range found {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: g.GRPC}}})
	}
	return state
}

// withAPI runs f with a connection to the gateways and what they serve.
func (e *env) withAPI(f func(*stack.Stack, *door, *api) error) error {
	s, err := e.running(nil)
	if err != nil {
		return err
	}
	d, err := openDoor(e.ctx, s.Cluster().Consul())
	if err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(e.ctx, 10*time.Second)
	done := newSteps(e.stderr).slowly("asking the gateways what they serve")
	a, err := reflectAPI(asking, d)
	done()
	cancel()
	if err == nil {
		err = f(s, d, a)
	}
	return errors.Join(err, d.Close())
}
