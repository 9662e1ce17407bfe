package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/e2e/scenario"
)

const (
	// displayCount and slot make some 15 plays a second, each handed in by itself:
	// on two processors the load and the machines need the rest.
	displayCount = 45
	slot         = 3 * time.Second
)

// connectDisplays enrols the displays and has them play: from the first scenario to
// the last, in every one of them, whatever happens. Their doors are those of all
// clients, of which they are told nothing afterwards. The media come from this
// process: the service on these machines has none.
func (c *cluster) connectDisplays(t *testing.T, ctx context.Context) {
	t.Helper()
	const content = "the media of all displays"
	media := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, content) }))
	t.Cleanup(media.Close)
	sum := sha256.Sum256([]byte(content))
	c.seller = scenario.NewOwner(ctx, t, c.doors(t, c.clients()...))
	var doors []string
	for _, n := range c.clients() {
		doors = append(doors, net.JoinHostPort(n.Address().String(), fmt.Sprint(devicePort)))
	}
	c.displays = scenario.NewFleet(ctx, t, scenario.FleetConfig{
		Owner: c.seller, Count: displayCount, Slot: slot,
		Doors:     func(context.Context) ([]string, error) { return doors, nil },
		Connected: c.seller.Online,
	})
	require.NoError(t, c.displays.Show(ctx, "spring-sale", media.URL+"/"+hex.EncodeToString(sum[:])))
	c.displays.Run(ctx, t)
}
