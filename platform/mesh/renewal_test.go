package mesh

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"
)

// TestLeafIsReplacedWhileTheAgentIsSlow: certificates that live eight seconds, and
// an agent that renews them after half of that and takes two seconds for every
// answer. Consul's own live an hour at least, so this agent is one of the test.
// No handshake may meet an expired one.
func TestLeafIsReplacedWhileTheAgentIsSlow(t *testing.T) {
	const life, late = 8 * time.Second, 2 * time.Second
	ours := newAuthority(t)
	began := time.Now()
	var certificates [8]consulapi.LeafCert // one is made every half life
	for i := range certificates {
		made := began.Add(time.Duration(i) * life / 2)
		certificates[i] = leafPEM(t, ours.leaf("account", func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = began.Add(-time.Minute), made.Add(life)
		}))
	}
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		known, _ := strconv.ParseUint(r.URL.Query().Get("index"), 10, 64)
		index := uint64(1)
		var body any
		switch path := r.URL.Path; {
		case strings.HasPrefix(path, "/v1/agent/connect/ca/leaf/"):
			// Who knows the newest waits for the next.
			index = uint64(time.Since(began)/(life/2)) + 1
			if known >= index {
				if !waits(r.Context(), time.Until(began.Add(time.Duration(known)*life/2))) {
					return
				}
				index = known + 1
			}
			body = certificates[min(int(index), len(certificates))-1]
		case known == 1:
			waits(r.Context(), time.Minute) // roots and intentions stay
			return
		case strings.HasSuffix(path, "/roots"):
			body = consulapi.CARootList{TrustDomain: testDomain, Roots: []*consulapi.CARoot{{RootCertPEM: certPEM(ours.cert.Raw)}}}
		default:
			body = map[string][]*consulapi.Intention{"account": {}}
		}
		if waits(r.Context(), late) {
			w.Header().Set("X-Consul-Index", strconv.FormatUint(index, 10))
			_ = json.NewEncoder(w).Encode(body)
		}
	}))
	client, err := consulapi.NewClient(&consulapi.Config{Address: slow.URL})
	require.NoError(t, err)
	m, err := Native(t.Context(), NativeConfig{Consul: client, Service: "account", Environment: "test"})
	require.NoError(t, err)
	defer slow.Close()
	defer m.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 4*late)
	defer cancel()
	require.NoError(t, m.Ready(ctx))

	n := m.(*native)
	serials := map[string]bool{}
	for start := time.Now(); time.Since(start) < life*3/2; waits(t.Context(), 20*time.Millisecond) {
		serverErr, clientErr := shake(t, n.certs.serverConfig(), n.certs.clientConfig("account"))
		require.NoError(t, serverErr)
		require.NoError(t, clientErr)
		serials[n.certs.leaf.Load().serial] = true
	}
	require.GreaterOrEqual(t, len(serials), 3, "it was renewed")
}

// waits reports whether ctx outlasts d.
func waits(ctx context.Context, d time.Duration) bool {
	pause(ctx, d)
	return ctx.Err() == nil
}

func certPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// leafPEM is a certificate as the agent sends it.
func leafPEM(t *testing.T, l *leaf) consulapi.LeafCert {
	t.Helper()
	key, err := x509.MarshalECPrivateKey(l.certificate.PrivateKey.(*ecdsa.PrivateKey))
	require.NoError(t, err)
	return consulapi.LeafCert{
		SerialNumber:  l.certificate.Leaf.SerialNumber.String(),
		CertPEM:       certPEM(l.certificate.Leaf.Raw),
		PrivateKeyPEM: string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: key})),
	}
}
