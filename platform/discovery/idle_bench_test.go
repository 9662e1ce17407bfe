package discovery_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/consultest"
	"github.com/marquee-ads/marquee/platform/discovery"
)

// BenchmarkIdleResolvers is what 100 resolvers of services that do not change
// cost the agent, with the default options: queries/s counts every request in the
// steady state, over a little more than one WaitTime. One iteration takes 70 s:
//
//	go test -run '^$' -bench IdleResolvers -benchtime 1x ./discovery
func BenchmarkIdleResolvers(b *testing.B) {
	const (
		resolvers = 100
		window    = 70 * time.Second
	)
	agent := consultest.Start(b)
	for name, service := range map[string]func(int) string{
		"100 of one service":  func(int) string { return "same" },
		"100 of 100 services": func(i int) string { return fmt.Sprint("service-", i) },
	} {
		b.Run(name, func(b *testing.B) {
			proxy := agent.Proxy()
			c := newConsul(b, proxy.Client, discovery.Options{})
			for i := range resolvers {
				conn := dial(b, c, fmt.Sprintf("consul:///%s", service(i)), "bench")
				conn.Connect()
			}
			waiting := func() bool {
				blocked := make(map[string]bool)
				for _, r := range proxy.Requests(healthPath) {
					if r.Query.Get("index") != "" {
						blocked[r.Path] = true
					}
				}
				services := make(map[string]bool)
				for i := range resolvers {
					services[service(i)] = true
				}
				return len(blocked) == len(services)
			}
			require.Eventually(b, waiting, patience, 10*time.Millisecond, "the resolvers do not settle")
			for b.Loop() {
				before := proxy.Count("")
				<-time.After(window)
				b.ReportMetric(float64(proxy.Count("")-before)/window.Seconds(), "queries/s")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
