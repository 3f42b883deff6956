# For machines that can pull no public image: PostgreSQL and a container registry from Debian, and moto as S3.
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN apt-get update -q && apt-get install -y -q --no-install-recommends postgresql docker-registry
COPY requirements.txt /tmp/
RUN python -m venv /opt/moto && sed -n 's/ \\$//; /^[a-z].*==/p' /tmp/requirements.txt > /tmp/pins.txt \
 && /opt/moto/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c /tmp/pins.txt 'moto[server]' boto3
USER 10001:10001
