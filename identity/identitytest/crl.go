package identitytest

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"time"
)

// CRL is a revocation list of the authority's in PEM, with these certificates. There
// is to be a newer one at the time next.
func (a *Authority) CRL(next time.Time, revoked ...*x509.Certificate) []byte {
	list := &x509.RevocationList{
		Number:     big.NewInt(a.serial.Add(1)),
		ThisUpdate: next.Add(-24 * time.Hour),
		NextUpdate: next,
	}
	for _, c := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: list.ThisUpdate})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	must(err)
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}
