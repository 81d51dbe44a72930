"""The data-quality report a hospital reads before it joins: tables, files, patients, radiographs, labels."""
