package blobs

import (
	"crypto/sha256"
	"encoding/hex"
)

// Sum is the SHA-256 of a blob's contents, which is the blob's name. The zero Sum
// stands for one that is not known.
type Sum [sha256.Size]byte

// ParseSum reads what String wrote: 64 hexadecimal digits in lower case, so that
// a blob has one name only. Anything else is an error with the reason
// NAME_INVALID.
func ParseSum(text string) (Sum, error) {
	var s Sum
	if len(text) == 2*len(s) {
		if _, err := hex.Decode(s[:], []byte(text)); err == nil && s.String() == text {
			return s, nil
		}
	}
	return Sum{}, errName
}

// String is the name as 64 hexadecimal digits in lower case.
func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// key is where the blob is in the store.
func (s Sum) key() string {
	name := s.String()
	return blobsPrefix + name[:2] + "/" + name
}
