package identitytest

import (
	"os"
	"path/filepath"
)

// WriteFiles mints an SVID for the workload at path and writes dir/name.pem,
// dir/name.key and dir/name.bundle.pem, each 0600 and replaced in one step. It
// returns their paths. At most the first of opts counts.
func (a *Authority) WriteFiles(dir, name, path string, opts ...Options) (cert, key, bundle string, err error) {
	certPEM, keyPEM, err := a.Issue(path, opts...).Marshal()
	must(err)
	bundlePEM, err := a.Bundle().Marshal()
	must(err)
	base := filepath.Join(dir, name)
	cert, key, bundle = base+".pem", base+".key", base+".bundle.pem"
	if err := replace(cert, certPEM); err != nil {
		return "", "", "", err
	}
	if err := replace(key, keyPEM); err != nil {
		return "", "", "", err
	}
	return cert, key, bundle, replace(bundle, bundlePEM)
}

// replace writes a file beside the old one, then puts it in its place.
func replace(path string, data []byte) error {
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
