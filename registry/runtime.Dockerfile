# What the image of every version stands on: the locked packages and a Python, with nothing that serving has no use for.
# Copied whole into one layer, so that what is removed is gone, and versions differ by a layer of their own only.
ARG BASE
FROM ${BASE} AS whole
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
COPY requirements-service.txt /tmp/
RUN python -m venv /opt/perennial && /opt/perennial/bin/python -m pip install --no-cache-dir --no-compile \
      --disable-pip-version-check --only-binary :all: --require-hashes -r /tmp/requirements-service.txt
# The import leaves bytecode of just what a replica imports; where it runs, nothing can be written.
RUN cd /opt/perennial/lib/python3*/site-packages \
 && rm -rf pip pip-* setuptools setuptools-* pkg_resources _distutils_hack distutils-precedence.pth \
 && find . -depth \( -name tests -o -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.a' \) -exec rm -rf {} + \
 && /opt/perennial/bin/python -c "import bentoml_cli.cli, bentoml_cli.serve, bentoml.serving, _bentoml_impl.worker.service" \
 && /opt/perennial/bin/python -c "import bentoml, httptools, msgspec, pandera.pandas, uvloop, whylogs, xgboost"
RUN rm -rf /tmp/* ~/.cache /var/cache/* /var/lib/apt/lists/* /usr/share/doc /usr/share/man /usr/share/locale /usr/share/info \
      /opt/perennial/bin/pip* /usr/bin/pip* /usr/local/bin/pip* /usr/share/perl* /usr/lib/*/perl* /usr/lib/*/libperl.so* /usr/bin/perl* /usr/lib/python3/dist-packages \
      /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/test /usr/local/lib/python3*/ensurepip \
 && echo 'perennial:x:10001:10001::/tmp:/usr/sbin/nologin' >> /etc/passwd && echo 'perennial:x:10001:' >> /etc/group

FROM scratch
COPY --from=whole / /
