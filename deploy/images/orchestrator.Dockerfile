# orchestrator: plans, runs and watches jobs; no TensorFlow, no LiteRT.
# Build with `make images`, which makes the wheel first; a stand-in for the base image is passed as PYTHON_IMAGE.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
FROM ${PYTHON_IMAGE}

ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY requirements/orchestrator.txt /install/requirements.txt
RUN python -m venv /opt/squeezeflow && /opt/squeezeflow/bin/pip install --require-hashes -r /install/requirements.txt
COPY dist/squeezeflow-*.whl /install/
RUN /opt/squeezeflow/bin/pip install --no-deps /install/squeezeflow-*.whl \
    && /opt/squeezeflow/bin/python -m compileall -q /opt/squeezeflow/lib \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin squeezeflow

USER 10001:10001
ENV PATH=/opt/squeezeflow/bin:$PATH SQUEEZEFLOW_LISTEN=0.0.0.0:7070 SQUEEZEFLOW_WORKDIR=/tmp/squeezeflow
EXPOSE 7070
ENTRYPOINT ["python", "-m", "squeezeflow.orchestrator"]
