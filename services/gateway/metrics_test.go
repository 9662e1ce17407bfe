package gateway_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
)

func TestMetricsCountBothDoorsAndNoMadeUpNames(t *testing.T) {
	gw := startOne(t, startEcho(t))
	_, err := gw.client.Echo(t.Context(), &echov1.EchoRequest{})
	require.NoError(t, err)
	require.Error(t, gw.conn.Invoke(t.Context(), "/made.up/Name", &echov1.EchoRequest{}, &echov1.EchoResponse{}))
	gw.do(t, "GET", "/v1/echo/x", "")
	gw.do(t, "GET", "/made/up", "")

	families, err := gw.metrics.Gather()
	require.NoError(t, err)
	got := make(map[string]float64)
	for _, family := range families {
		if family.GetName() != "marquee_gateway_calls_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			label := make(map[string]string)
			for _, l := range m.GetLabel() {
				label[l.GetName()] = l.GetValue()
			}
			got[fmt.Sprint(label["door"], " ", label["method"], " ", label["code"])] = m.GetCounter().GetValue()
		}
	}
	require.Equal(t, map[string]float64{
		"grpc " + echoPath + " OK":   1,
		"grpc unknown UNIMPLEMENTED": 1,
		"http " + echoPath + " OK":   1,
		"http unknown NOT_FOUND":     1,
	}, got)
}
