package account

import (
	"crypto/hmac"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/oklog/ulid/v2"
)

// credential is a kind of secret that follows from the id of what it stands for:
// nobody without the key can make one, and it need not be stored to be given out
// again to a repeat of the request that made it.
type credential struct {
	// prefix tells people and scanners what it is; idPrefix is that of the id.
	prefix, idPrefix string
	key              purpose
}

var (
	invitationToken = credential{prefix: "mqi_", idPrefix: "inv_", key: ofInvitations}
	apiKeySecret    = credential{prefix: "mqk_", idPrefix: "apk_", key: ofAPIKeys}
)

func (s *Secret) sealCredential(kind credential, id string) (string, error) {
	parsed, err := ulid.ParseStrict(strings.TrimPrefix(id, kind.idPrefix))
	if err != nil {
		return "", fmt.Errorf("making the secret of %s: %w", id, err)
	}
	return kind.prefix + base64.RawURLEncoding.EncodeToString(append(parsed[:], s.mac(kind.key, id)...)), nil
}

// openCredential returns the id of what a secret stands for, and false for
// everything that sealCredential has not made.
func (s *Secret) openCredential(kind credential, text string) (string, bool) {
	encoded, ok := strings.CutPrefix(text, kind.prefix)
	if !ok {
		return "", false
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(raw) != 16+32 {
		return "", false
	}
	id := kind.idPrefix + ulid.ULID(raw[:16]).String()
	return id, hmac.Equal(raw[16:], s.mac(kind.key, id))
}
