"""The reader's side: records and published numbers to frames, sentences, figures and pages. Nothing here trains."""
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # timm's downloads would show a bar that notebooks here do not need
