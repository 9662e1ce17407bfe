package main

import (
	"context"
	"crypto/x509"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	ours "github.com/marquee-ads/marquee/services/device/player"
)

// listener keeps what a player says.
type listener struct {
	mu   sync.Mutex
	said strings.Builder
}

func (*listener) Shows(*ours.Display, *ours.Item)         {}
func (*listener) Played(*ours.Display, ours.Play)         {}
func (*listener) Identifies(*ours.Display, time.Duration) {}

func (l *listener) Says(_ *ours.Display, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said.WriteString(text + "\n")
}

func (l *listener) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.said.String()
}

// TestPlayerOverTLS has our player connect to ports with and without TLS, and say
// what is wrong when it is.
func TestPlayerOverTLS(t *testing.T) {
	certFile, keyFile := t.TempDir()+"/cert.pem", t.TempDir()+"/key.pem"
	trusted := certificate(t, certFile, keyFile)
	w := newWorld(t)
	secure, plain := w.start(t, "--mqtt-certificate-file", certFile, "--mqtt-key-file", keyFile), w.start(t)
	for name, c := range map[string]struct {
		server  string
		trusted *x509.CertPool
		problem string // none: it connects
	}{
		"OK":             {"mqtts://" + secure.players, trusted, ""},
		"OKPlain":        {plain.players, nil, ""},
		"ErrUntrusted":   {"mqtts://" + secure.players, nil, "its certificate is not trusted"},
		"ErrAnotherName": {"mqtts://" + strings.Replace(secure.players, "127.0.0.1", "localhost", 1), trusted, "its certificate is not trusted"},
		"ErrNoTLS":       {"mqtts://" + plain.players, trusted, "a server that speaks none has an address without mqtts://"},
		"ErrTLS":         {secure.players, nil, "mqtts://"},
	} {
		t.Run(name, func(t *testing.T) {
			device := secure.enrol(t, requestID(t))
			said := &listener{}
			p, err := ours.New(ours.Config{
				Dir: t.TempDir(), Servers: func() ([]string, error) { return []string{c.server}, nil }, Authorities: c.trusted,
				Devices:  []ours.Credentials{{DeviceID: device.GetDeviceId(), Secret: device.GetSecret()}},
				Observer: said, Wall: time.Now, JournalLimit: ours.DefaultJournalLimit,
			})
			require.NoError(t, err)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- p.Run(ctx) }()
			defer func() {
				cancel()
				require.NoError(t, <-ended)
			}()
			if c.problem == "" {
				require.Eventually(t, func() bool { return p.Displays()[0].Status().Connection == ours.Connected }, patience, 10*time.Millisecond, "it does not connect")
				secure.online(t, device.GetDeviceId(), true)
				return
			}
			require.Eventually(t, func() bool { return strings.Contains(said.all(), "the next attempt is in") }, patience, 10*time.Millisecond, "it does not say what is wrong")
			require.Contains(t, said.all(), c.problem)
			require.NotContains(t, said.all(), "connected to "+c.server+"\n")
		})
	}
}
